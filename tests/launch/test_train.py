"""The command as users run it: from a folder's weights, on wrong data, into divergence."""

import json
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, CanineConfig, CanineModel

from tests.commands import QUICK, ROOT, run_recipe, start

pytestmark = pytest.mark.ranks
CANINE, DEBERTA = QUICK


def run_raw(folder, recipe, *arguments):
    command = [
        sys.executable,
        "-m",
        "launch",
        "run",
        str(recipe),
        "--output",
        str(folder),
        "--profile",
        "cpu",
    ]
    return start([*command, *arguments], folder)


@pytest.mark.parametrize("recipe", [pytest.param(CANINE, marks=pytest.mark.slow), DEBERTA])
def test_training_goes_on_from_the_folder_that_another_run_exported(recipe, straight, tmp_path):
    first = straight[recipe]
    source = first.folder / "final"
    arguments = [f"model.source={source}", "model.config={}", "model.dropout=null"]
    if recipe == DEBERTA:
        # the same pieces, as the tokenizer was trained on the same text
        arguments += [f"tokenizer={{source: {source}}}"]
    second = run_recipe(tmp_path / "run", recipe, "--profile", "cpu", *arguments, num_steps=2)
    assert second.events("eval")[0]["loss"] == pytest.approx(first.events("eval")[-1]["loss"], rel=1e-6)
    weights = second.events("weights")[0]
    assert weights["new"] == []
    assert weights["unused"] == []


def test_canine_starts_from_an_encoder_without_a_head_and_says_so(tmp_path):
    config = CanineConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_hash_buckets=256,
        max_position_embeddings=128,
    )
    CanineModel(config).save_pretrained(tmp_path / "canine")
    arguments = ("--profile", "cpu", f"model.source={tmp_path / 'canine'}", "model.config={}")
    ran = run_recipe(tmp_path / "run", CANINE, *arguments, num_steps=4)
    weights = ran.events("weights")[0]
    assert weights["new"]
    assert all("canine." not in name for name in weights["new"])
    assert "new" in ran.stdout


@pytest.mark.parametrize("recipe", list(QUICK))
def test_final_loads_with_the_auto_classes_and_gives_the_logged_loss(recipe, straight):
    import modeling  # noqa: F401 - registers CANINE

    folder = straight[recipe].folder / "final"
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["the river flows through the city"], return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape[:2] == batch["input_ids"].shape
    command = [sys.executable, "-m", "launch", "evaluate", str(straight[recipe].folder), recipe, "--json"]
    done = start([*command, *QUICK[recipe]], folder)
    assert done.exit_code == 0, done.stderr
    score = json.loads(done.stdout)
    wanted = straight[recipe].events("eval")[-1]
    assert score["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
    assert score["num_targets"] == wanted["num_targets"]


def test_the_fill_and_export_verbs_work_on_a_run(straight, tmp_path):
    folder = straight[CANINE].folder
    done = start([sys.executable, "-m", "launch", "fill", str(folder), "goo_le.com", "--json"], folder)
    assert done.exit_code == 0, done.stderr
    (filled,) = json.loads(done.stdout)
    assert len(filled["places"]) == 1
    assert len(filled["completed"]) == len("google.com")
    done = start([sys.executable, "-m", "launch", "export", str(folder), str(tmp_path / "out")], folder)
    assert done.exit_code == 0, done.stderr
    assert {"config.json", "model.safetensors", "README.md"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


RECIPE = """
name: own
model:
  family: deberta
  source: scratch
  config: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64,
           max_position_embeddings: 32, position_buckets: 16}
  dropout: 0.0
tokenizer: {source: train, kind: unigram, vocab_size: 120}
data: {sources: SOURCES, row_length: 32, evaluation_share: 0.1}
objective: {masking: {kind: whole_word}}
training: {global_batch: 8, max_steps: 4, learning_rate: 1e-3}
evaluation: {every: 2}
checkpoint: {every: 2}
"""


# Plain English that is at hand.
LINES = sorted({line.strip() for line in (ROOT / "LICENSE").read_text().splitlines() if line.strip()})


def write_recipe(tmp_path, sources):
    (tmp_path / "corpus.txt").write_text("\n".join(LINES))
    path = tmp_path / "own.yaml"
    path.write_text(RECIPE.replace("SOURCES", sources.replace("HERE", str(tmp_path))))
    return path


def test_a_recipe_of_ones_own_trains_on_a_text_file(tmp_path):
    recipe = write_recipe(tmp_path, "[{kind: text, path: HERE/corpus.txt}]")
    ran = run_raw(tmp_path / "run", recipe)
    assert ran.exit_code == 0, ran.stderr
    assert [event["step"] for event in ran.events("eval")] == [0, 2, 4]


def test_evaluating_on_the_training_file_is_refused_with_exit_code_2(tmp_path):
    one = "{kind: text, path: HERE/corpus.txt, split: SIDE}"
    both = f"[{one.replace('SIDE', 'train')}, {one.replace('SIDE', 'evaluation')}]"
    ran = run_raw(tmp_path / "run", write_recipe(tmp_path, both))
    assert ran.exit_code == 2
    assert f"{len(LINES)} texts are in both the training and the evaluation split" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ("[{kind: text, path: HERE/none-*.txt}]", "no file matches"),
        ("[{kind: jsonl, path: HERE/corpus.txt}]", "corpus.txt"),
    ],
)
def test_unusable_data_is_exit_code_2_without_a_traceback(sources, words, tmp_path):
    ran = run_raw(tmp_path / "run", write_recipe(tmp_path, sources))
    assert ran.exit_code == 2
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_divergence_stops_the_run_with_exit_code_5_and_the_last_checkpoint_whole(tmp_path):
    from launch.checkpoints.manifest import find_checkpoints, find_damage

    recipe = write_recipe(tmp_path, "[{kind: text, path: HERE/corpus.txt}]")
    arguments = ["training.learning_rate=1", "training.betas=[0, 0]", "training.eps=1e-30"]
    arguments += ["training.weight_decay=1e30", "training.warmup_steps=2", "training.max_steps=40"]
    ran = run_raw(tmp_path / "run", recipe, *arguments, "evaluation.every=1", "checkpoint.every=1")
    assert ran.exit_code == 5, ran.stdout + ran.stderr
    assert "training diverged" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert all(find_damage(place) is None for place in find_checkpoints(ran.folder))


def test_early_stopping_ends_the_run_before_its_last_step(tmp_path):
    recipe = write_recipe(tmp_path, "[{kind: text, path: HERE/corpus.txt}]")
    arguments = [
        "training.learning_rate=0",
        "training.max_steps=30",
        "stopping={patience: 3, threshold: 0.01}",
    ]
    ran = run_raw(tmp_path / "run", recipe, *arguments)
    assert ran.exit_code == 0, ran.stderr
    # step 0 sets the mark; 2, 4 and 6 do not beat it
    assert [event["step"] for event in ran.events("eval")] == [0, 2, 4, 6]
    assert ran.events("end")[0]["reason"] == "patience"
    assert "stopped early" in ran.stdout


def test_a_changed_recipe_does_not_resume_the_old_run(tmp_path):
    recipe = write_recipe(tmp_path, "[{kind: text, path: HERE/corpus.txt}]")
    assert run_raw(tmp_path / "run", recipe).exit_code == 0
    finished = run_raw(tmp_path / "run", recipe, "training.learning_rate=3e-3")
    assert finished.exit_code == 4
    shutil.rmtree(tmp_path / "run" / "final")
    changed = run_raw(tmp_path / "run", recipe, "training.learning_rate=2e-3")
    assert changed.exit_code == 4
    assert "training.learning_rate: was 0.001, is 0.002" in changed.stderr
    (tmp_path / "corpus.txt").write_text("\n".join(LINES[:-1]))
    other = run_raw(tmp_path / "run", recipe)
    assert other.exit_code == 4
    assert "data.sources" in other.stderr or "its text" in other.stderr
    never = run_raw(tmp_path / "run", recipe, "--resume", "never")
    assert never.exit_code == 4


def test_a_run_folder_that_cannot_be_made_is_exit_code_3(tmp_path):
    recipe = write_recipe(tmp_path, "[{kind: text, path: HERE/corpus.txt}]")
    (tmp_path / "file").write_text("in the way")
    ran = run_raw(tmp_path / "file", recipe)
    assert ran.exit_code == 3
    assert "name another --output" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_data_without_anything_to_evaluate_on_is_exit_code_2(tmp_path):
    recipe = write_recipe(tmp_path, "[{kind: text, path: HERE/corpus.txt}]")
    ran = run_raw(tmp_path / "run", recipe, "data.evaluation_share=1e-9")
    assert ran.exit_code == 2
    assert "no document fell to the evaluation" in ran.stderr
    assert "Traceback" not in ran.stderr
