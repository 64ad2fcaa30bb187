"""What folders may bring, and what others can do with the folders that we write."""

import json
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, CanineModel, pipeline

from data_pipes.tokenize import TokenizerError
from data_pipes.tokens.words import load_tokenizer
from launch.export import export
from launch.predict import load_model
from modeling import hf
from modeling.trust import SAFE_CODE, SAFE_WEIGHTS
from tests.data_pipes.tiny_tokenizers import make_unigram

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DEBERTA = {**SIZES, "position_buckets": 8, "max_position_embeddings": 32}
CANINE = {**SIZES, "num_hash_buckets": 64, "max_position_embeddings": 64}
CODE = "import pathlib\npathlib.Path({canary!r}).touch()\nclass Thing: pass\n"


class Touch:
    """A pickle of it creates a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    hf.save(hf.build("deberta", config=DEBERTA, num_pieces=120, seed=0), place, make_unigram())
    return place


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickled_weights_are_refused_and_never_opened(name, folder, canary):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Touch(canary)))
    for load in (lambda: hf.load("deberta", folder), lambda: load_model(folder)):
        with pytest.raises(
            ValueError, match=f"weights in pickles only .{name}.* give a folder with model.sa"
        ):
            load()
    assert not canary.exists()


def test_an_index_that_names_pickles_is_refused_and_they_are_never_opened(folder, canary):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(canary)))
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    for name in ("pytorch_model.bin", "../model.safetensors"):
        index = {"metadata": {}, "weight_map": {"deberta.x": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=f"index.json names {name}: its parts must be .safetensors"):
            hf.load("deberta", folder)
    assert not canary.exists()


def test_a_pickle_beside_the_safetensors_is_never_opened(folder, canary):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(canary)))
    _, report = hf.load("deberta", folder)
    assert report.new == []
    assert not canary.exists()


@pytest.mark.parametrize("model_type", ["deberta-v2", "unheard-of"])
def test_a_folder_with_code_of_its_own_is_refused_and_the_code_not_run(model_type, folder, canary):
    (folder / "thing.py").write_text(CODE.format(canary=str(canary)))
    auto_map = {"AutoConfig": "thing.Thing", "AutoModelForMaskedLM": "thing.Thing"}
    change_json(folder / "config.json", auto_map=auto_map, model_type=model_type)
    with pytest.raises(ValueError, match="brings Python code of its own .*remove auto_map"):
        hf.load("deberta", folder)
    assert not canary.exists()


def test_a_tokenizer_with_code_of_its_own_is_refused_without_a_question(folder, canary):
    (folder / "thing.py").write_text(CODE.format(canary=str(canary)))
    change_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["thing.Thing", "thing.Thing"]},
        tokenizer_class="Thing",
    )
    change_json(folder / "config.json", model_type="unheard-of")
    with pytest.raises(TokenizerError, match="trust_remote_code"):
        load_tokenizer(folder)
    assert not canary.exists()


def test_every_loading_call_of_the_packages_says_what_it_trusts():
    root = Path(__file__).parent.parent.parent
    assert (
        SAFE_WEIGHTS == {**SAFE_CODE, "use_safetensors": True} == {**SAFE_WEIGHTS, "trust_remote_code": False}
    )
    for package in ("modeling", "launch", "data_pipes"):
        for path in (root / package).rglob("*.py"):
            for before, call in pairwise(path.read_text().split(".from_pretrained(")):
                safe = ("**SAFE_CODE", "**SAFE_WEIGHTS", "trust_remote_code=False", "*args, **kwargs")
                is_example = call.startswith('"path/to/this/folder")')
                is_json = before.endswith("DebertaV2Config")
                assert is_example or is_json or any(word in call[:160] for word in safe), (
                    path.name,
                    call[:80],
                )


def test_the_fill_mask_pipeline_of_transformers_fills_a_deberta_folder(folder):
    script = (
        "import sys, json, transformers\n"
        "fill = transformers.pipeline('fill-mask', model=sys.argv[1])\n"
        "assert type(fill.model).__module__.startswith('transformers.')\n"
        "print(json.dumps(fill('the [MASK] say', top_k=3)))\n"
    )
    theirs = json.loads(run_python(script, folder))
    ours = pipeline("fill-mask", model=str(folder))("the [MASK] say", top_k=3)
    model, tokenizer = load_model(folder)
    batch = tokenizer(["the [MASK] say"], return_tensors="pt")
    place = batch["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    with torch.no_grad():
        logits = model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    best = logits[0, place].softmax(-1).topk(3)
    for found in (theirs, ours):
        assert [one["token"] for one in found] == best.indices.tolist()
        assert [one["score"] for one in found] == pytest.approx(best.values.tolist(), rel=1e-5)


def run_python(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=arguments[0],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_an_export_loads_with_the_auto_class_alone_and_gives_the_live_logits(tmp_path):
    model: Any = hf.build("deberta", config=DEBERTA, num_pieces=120, seed=3).eval()
    model.set_attention("fast")
    hf.save(model, tmp_path / "run" / "final", make_unigram())
    out = export(tmp_path / "run", tmp_path / "out")
    script = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1]).eval()\n"
        "assert 'modeling' not in sys.modules\n"
        "assert type(model).__name__ == 'DebertaV2ForMaskedLM', type(model)\n"
        "torch.save(model(torch.arange(5, 29)[None]).logits, sys.argv[2])\n"
        "print('done')\n"
    )
    run_python(script, out, tmp_path / "logits.pt")
    theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(theirs, model(torch.arange(5, 29)[None]).logits, rtol=1e-5, atol=1e-6)


def test_a_canine_export_loads_as_the_plain_encoder(tmp_path):
    model: Any = hf.build("canine", config=CANINE, head_code_points=range(97, 123), seed=3).eval()
    hf.save(model, tmp_path / "run" / "final")
    out = export(tmp_path / "run", tmp_path / "out")
    load: Any = CanineModel.from_pretrained
    encoder, found = load(out, add_pooling_layer=False, output_loading_info=True)
    assert found["missing_keys"] == set()
    assert {name.split(".")[0] for name in found["unexpected_keys"]} == {"head"}
    ids = torch.arange(97, 121)[None]
    ours, theirs = model.canine(ids).last_hidden_state, encoder.eval()(ids).last_hidden_state
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    # With Maskwright the auto class gives the head too.
    torch.testing.assert_close(
        AutoModelForMaskedLM.from_pretrained(out).eval()(ids).logits, model(ids).logits
    )
