"""What folders may bring, and what others can do with the folders that we write."""

import ast
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
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
from modeling import hf, trust
from modeling.trust import (
    SAFE_CODE,
    SAFE_WEIGHTS,
    check_code,
    check_owner,
    check_pickle,
    check_shards,
    load_tensors,
)
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


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "thing.Thing"}},
        {"custom_pipelines": {"fill": {"impl": "thing.Thing"}}},
        {"text_config": {"auto_map": {"AutoModel": "thing.Thing"}}},
        {"keypoint_detector_config": {"inner": [{"trust_remote_code": True}]}},
        {"_attn_implementation_internal": "someone/kernels"},
        {"_experts_implementation_internal": "someone/kernels"},
        {"_attn_implementation": "someone/kernels@main:forward"},
        {"sub": {"attn_implementation": "someone/kernels"}},
    ],
    ids=json.dumps,
)
def test_a_configuration_that_names_code_is_refused_at_any_depth(config, folder):
    for source in (config, {"a": [config]}):
        with pytest.raises(ValueError, match="which is never run here"):
            check_code("x", source)
    change_json(folder / "config.json", **config)
    for load in (lambda: hf.load("deberta", folder), lambda: load_model(folder)):
        with pytest.raises(ValueError, match="which is never run here"):
            load()


@pytest.mark.parametrize(
    "config",
    [
        {"trust_remote_code": False},
        {"auto_map": None},
        {"attn_implementation": "eager"},
        {"model_type": "deberta-v2", "id2label": {"0": "a/b"}, "architectures": ["X"]},
    ],
    ids=json.dumps,
)
def test_a_configuration_that_names_none_is_fine(config):
    check_code("x", config)


@pytest.mark.parametrize("content", ["[]", "3", "{", "[" * 100_000, "\x00"], ids=lambda text: text[:4])
def test_a_configuration_that_is_no_object_is_an_error_of_its_own(content, folder):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_model(folder)


class Call:
    """A pickle of it calls a function when it is opened."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def list_payloads(canary):
    """Objects whose pickles make the canary appear when they are opened."""
    shell = Call(os.system, f"touch {canary}")
    nested = pickle.dumps(Call(Path.touch, canary))
    return {
        "system": shell,
        "eval": Call(eval, f"__import__('pathlib').Path({str(canary)!r}).touch()"),
        "exec": Call(exec, f"import pathlib; pathlib.Path({str(canary)!r}).touch()"),
        "nested pickle": Call(pickle.loads, nested),
        "nested torch": Call(torch.storage._load_from_bytes, nested),
        "subprocess": Call(subprocess.call, ["touch", str(canary)]),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "deep": {"optimizer": {"state": [OrderedDict(a=torch.zeros(2), b=shell)]}},
    }


PAYLOADS = list(list_payloads("x"))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_shard_that_would_call_something_is_refused_and_the_call_not_made(payload, canary, tmp_path):
    path = tmp_path / "engine" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    path.parent.mkdir()
    torch.save(list_payloads(canary)[payload], path)
    for check in (lambda: check_pickle(path), lambda: check_shards(path.parent)):
        with pytest.raises(ValueError, match="would call .* when it is opened"):
            check()
    with pytest.raises(ValueError, match="no file of plain tensors"):
        load_tensors(path)
    assert not canary.exists()


@pytest.mark.parametrize("payload", ["system", "eval", "nested pickle"])
def test_the_payloads_are_real(payload, canary, tmp_path):
    path = tmp_path / "x.pt"
    torch.save(list_payloads(canary)[payload], path)
    torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_an_old_or_bare_pickle_is_refused_unopened(payload, canary, tmp_path):
    bare, legacy = tmp_path / "bare.pt", tmp_path / "legacy.pt"
    bare.write_bytes(pickle.dumps(list_payloads(canary)[payload]))
    torch.save(list_payloads(canary)[payload], legacy, _use_new_zipfile_serialization=False)
    for path in (bare, legacy):
        with pytest.raises(ValueError, match="cannot be looked at"):
            check_pickle(path)
    assert not canary.exists()


def test_a_harmless_legacy_pickle_is_refused_too(tmp_path):
    path = tmp_path / "legacy.pt"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="cannot be looked at"):
        check_pickle(path)


def test_torchscript_and_damage_are_refused(tmp_path):
    script, cut = tmp_path / "script.pt", tmp_path / "cut.pt"
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/constants.pkl", b"\x80\x02).")
    with pytest.raises(ValueError, match="TorchScript"):
        check_pickle(script)
    torch.save({"a": torch.zeros(100)}, cut)
    cut.write_bytes(cut.read_bytes()[:-50])
    for refuse in (check_pickle, load_tensors):
        with pytest.raises(ValueError, match="it is not opened"):
            refuse(cut)


def test_what_zero_writes_is_let_through(tmp_path):
    """The names are put in by hand: DeepSpeed itself takes 10 s to import."""
    path = tmp_path / "optim_states.pt"
    for name in ("fragment_address", "ZeroStageEnum", "LossScaler", "DynamicLossScaler"):
        (full,) = [known for known in trust._SHARD_GLOBALS if known.endswith(f".{name}")]
        module = full.rpartition(".")[0]
        data = b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n."
        torch.save({}, path)
        with zipfile.ZipFile(path) as archive:
            parts = {item: archive.read(item) for item in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for item, content in parts.items():
                archive.writestr(item, data if item.endswith("data.pkl") else content)
        assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == [full]
        check_pickle(path)


def test_only_pickles_are_looked_at_and_every_one(tmp_path):
    (tmp_path / "latest").write_text("state")
    deep = tmp_path / "state" / "deep"
    deep.mkdir(parents=True)
    torch.save({"a": torch.zeros(2)}, deep / "good.pt")
    check_shards(tmp_path)
    for suffix in (".pt", ".bin", ".pkl", ".pth"):
        (deep / f"bad{suffix}").write_bytes(b"x")
        with pytest.raises(ValueError, match=f"bad{suffix}"):
            check_shards(tmp_path)
        (deep / f"bad{suffix}").unlink()


def test_a_checkpoint_that_everyone_may_change_is_refused(tmp_path):
    torch.save({}, tmp_path / "a.pt")
    check_shards(tmp_path)
    for path, mode in ((tmp_path / "a.pt", 0o666), (tmp_path, 0o777)):
        old = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(ValueError, match="everyone may write"):
            check_shards(tmp_path)
        path.chmod(old)
    (tmp_path / "b.pt").symlink_to(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="is a link"):
        check_shards(tmp_path)


def test_a_link_to_a_folder_inside_is_refused_and_what_lies_behind_it_never_opened(canary, tmp_path):
    behind, engine = tmp_path / "behind", tmp_path / "engine"
    behind.mkdir()
    engine.mkdir()
    torch.save(list_payloads(canary)["system"], behind / "mp_rank_00_model_states.pt")
    (engine / "state").symlink_to(behind)
    with pytest.raises(ValueError, match="state is a link"):
        check_shards(engine)
    assert not canary.exists()


def test_a_folder_inside_that_everyone_may_change_or_that_is_another_users_is_refused(tmp_path, monkeypatch):
    inner = tmp_path / "state"
    inner.mkdir()
    torch.save({}, inner / "a.pt")
    check_shards(tmp_path)
    inner.chmod(0o777)
    with pytest.raises(ValueError, match="everyone may write to .*state"):
        check_shards(tmp_path)
    inner.chmod(0o700)
    monkeypatch.setattr(trust.os, "geteuid", lambda: 4711)
    monkeypatch.setattr(Path, "lstat", lambda path: give_away(path, 4712 if path == inner else 4711))
    with pytest.raises(ValueError, match="state belongs to another user"):
        check_shards(tmp_path)
    monkeypatch.setattr(trust.os, "geteuid", lambda: 0)
    check_shards(tmp_path)  # root may open anybody's


def give_away(path, owner):
    """What `lstat` would say of a path that is another user's."""
    found = path.stat(follow_symlinks=False)
    return os.stat_result((*found[:4], owner, *found[5:]))


def test_a_checkpoint_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    (tmp_path / "own").mkdir()
    if tmp_path.stat().st_uid == 0:  # root's files are trusted
        check_owner(tmp_path)
        os.chown(tmp_path / "own", 4711, -1)
    with pytest.raises(ValueError, match="another user"):
        check_owner(tmp_path / "own")


def test_plain_tensors_are_read_back(tmp_path):
    state = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [1, "a", None]},
        "scaler": None,
    }
    torch.save(state, tmp_path / "a.pt")
    assert load_tensors(tmp_path / "a.pt") == state


def test_no_file_of_ours_opens_pickles_in_another_way():
    root = Path(__file__).parent.parent.parent
    for package in ("modeling", "launch", "data_pipes"):
        for path in (root / package).rglob("*.py"):
            calls = {
                ast.unparse(node.func): ast.unparse(node)
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call)
            }
            assert not {"pickle.load", "pickle.loads", "torch.jit.load", "joblib.load"} & set(calls), path
            assert ("torch.load" in calls) is (path.name == "trust.py"), path
            assert "weights_only=True" in calls.get("torch.load", "weights_only=True"), path
