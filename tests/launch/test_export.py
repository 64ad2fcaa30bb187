import json

import pytest
import yaml

from launch.export import write_card

SOURCE = "{kind: jsonl, path: corpus.jsonl}"


def make_run(folder, *, sources=SOURCE, source="scratch", losses=(3.0, 2.0), stopping="null"):
    folder.mkdir()
    (folder / "recipe.resolved.yaml").write_text(
        f"name: small\nmodel: {{family: deberta, source: {source}}}\nstopping: {stopping}\n"
        "objective: {masking: {kind: whole_word, rate: 0.15}}\n"
        f"data: {{sources: [{sources}]}}\n"
    )
    events = [
        {
            "kind": "eval",
            "step": 10 * index,
            "loss": loss,
            "perplexity": 100.0 + index,
            "accuracy": 0.1 * index,
            "num_targets": 12_345,
        }
        for index, loss in enumerate(losses)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for name in ("best", "final", "checkpoint-10"):
        (folder / name).mkdir()
    return folder


def read_card(run, name="final"):
    return write_card(run / name, run_folder=run).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "losses", "stopping", "step"),
    [
        ("final", (3.0, 1.0, 2.0), "null", 20),
        ("best", (3.0, 1.0, 2.0), "null", 10),
        ("best", (3.0, 1.0, 2.0), "{metric: accuracy}", 20),
        ("best", (3.0, float("nan"), 2.0), "null", 20),
        ("checkpoint-10", (3.0, 1.0, 2.0), "null", 10),
    ],
)
def test_a_card_tells_the_figures_of_its_own_step(name, losses, stopping, step, tmp_path):
    card = read_card(make_run(tmp_path / "run", losses=losses, stopping=stopping), name)
    assert f"Weights of step {step}\n" in card
    row = next(line for line in card.splitlines() if line.startswith("| this model"))
    wanted = losses[step // 10]
    assert row == f"| this model (step {step}) | {100 + step // 10} | {wanted:.4f} | {step}.0% | 12,345 |"


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (SOURCE, "held-out documents of the same sources, chosen by hash. "),
        ("{kind: jsonl, path: a, group_key: pub_id}", "chosen by `pub_id`, no group on both sides"),
        (
            "{kind: text, path: a, split: train}, {kind: text, path: b, split: evaluation}",
            "measured on 1 source held out as a whole",
        ),
    ],
)
def test_a_card_tells_how_documents_were_held_out(sources, words, tmp_path):
    assert words in read_card(make_run(tmp_path / "run", sources=sources))


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("microsoft/deberta-v3-base", "microsoft/deberta-v3-base"),
        ("scratch", None),
        ("/data/models/mine", None),
        ("runs/first/final", None),
    ],
)
def test_only_a_hub_model_is_named_as_the_base(source, base, tmp_path):
    card = read_card(make_run(tmp_path / "run", source=source))
    facts = yaml.safe_load(card.split("---\n")[1])
    assert facts.get("base_model") == base
    assert facts["library_name"] == "transformers"
    assert facts["tags"] == ["maskwright", "masked-lm", "deberta", "whole-word"]


def test_a_card_of_an_empty_run_invents_nothing(tmp_path):
    run = tmp_path / "run"
    (run / "final").mkdir(parents=True)
    card = write_card(run / "final", run_folder=run).read_text(encoding="utf-8")
    body = card.split("---\n")[2]
    assert not any(character.isdigit() for character in body)


def test_a_card_leaves_the_manifest_and_no_draft(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "final" / "manifest.json").write_text("{}")
    write_card(run / "final", run_folder=run)
    assert sorted(path.name for path in (run / "final").iterdir()) == ["README.md", "manifest.json"]
