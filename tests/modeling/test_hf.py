import inspect
import math
import re
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    CanineConfig,
    CanineModel,
    CanineTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2Model,
)
from transformers.models.canine import modeling_canine
from transformers.models.deberta_v2 import modeling_deberta_v2

from modeling import CanineForMaskedLM, DebertaForMaskedLM, hf

DEBERTA: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "position_buckets": 8,
    "max_position_embeddings": 32,
}
CANINE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hash_buckets": 64,
}
LETTERS = list(range(97, 123))
POOLING_KEYS = {"deberta": {"pooler_hidden_size"}, "canine": set()}
INPUT_IDS = torch.tensor([[1, 5, 9, 13, 2, 30, 31, 7]])


def build_deberta(seed=0, num_pieces=40, **config) -> Any:
    return hf.build("deberta", config={**DEBERTA, **config}, num_pieces=num_pieces, seed=seed)


def build_canine(seed=0, head_code_points=tuple(LETTERS), **config) -> Any:
    return hf.build("canine", config={**CANINE, **config}, head_code_points=head_code_points, seed=seed)


def _arguments_of(builder) -> tuple[Any, dict[str, Any]]:
    if builder is build_canine:
        return "canine", {"head_code_points": LETTERS}
    return "deberta", {"num_pieces": 40}


def rename_weights(folder, rename):
    path = folder / "model.safetensors"
    save_file(
        {rename(name): value for name, value in load_file(path).items()}, path, metadata={"format": "pt"}
    )


@pytest.mark.parametrize("builder", [build_deberta, build_canine])
def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone(builder):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = builder(seed=4).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second = builder(seed=4).state_dict()
    other = builder(seed=5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_deberta_from_scratch_is_of_the_v3_style_unless_told():
    config = build_deberta().config
    assert {key: getattr(config, key) for key in hf.DEBERTA_V3_STYLE} == {
        **hf.DEBERTA_V3_STYLE,
        "position_buckets": 8,
    }
    assert config.vocab_size == 40
    assert build_deberta(legacy=True).config.legacy is True


@pytest.mark.parametrize("builder", [build_deberta, build_canine])
def test_a_new_model_starts_near_chance(builder):
    model = builder().eval()
    labels = torch.arange(97, 105)[None] if isinstance(model, CanineForMaskedLM) else INPUT_IDS
    num_classes = 27 if isinstance(model, CanineForMaskedLM) else 40
    assert model(INPUT_IDS, labels=labels).loss.item() == pytest.approx(math.log(num_classes), rel=0.05)


@pytest.mark.parametrize("builder", [build_deberta, build_canine])
def test_dropout_reaches_every_dropout_layer(builder):
    family, given = _arguments_of(builder)
    model = hf.build(family, config=CANINE if family == "canine" else DEBERTA, dropout=0.25, seed=0, **given)
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.25}
    with pytest.raises(ValueError, match=r"dropout is 1\.0"):
        hf.build(family, config={}, dropout=1.0, seed=0, **given)


@pytest.mark.parametrize(
    ("family", "key", "message"),
    [
        ("deberta", "hidden_sise", "did you mean 'hidden_size'"),
        ("deberta", "num_layers", "did you mean 'num_hidden_layers'"),
        ("deberta", "position_bucket", "did you mean 'position_buckets'"),
        ("canine", "downsampling", "did you mean 'downsampling_rate'"),
        ("canine", "position_buckets", "canine has no config key 'position_buckets'"),
        ("deberta", "vocab_size", "give the argument num_pieces"),
        ("canine", "hidden_dropout_prob", "give the argument dropout"),
        ("canine", "head_code_points", "give the argument head_code_points"),
    ],
)
def test_keys_that_the_family_lacks_are_refused(family, key, message):
    with pytest.raises(ValueError, match=message):
        hf.build(family, config={key: 1}, seed=0)


@pytest.mark.parametrize(("family", "code"), [("deberta", modeling_deberta_v2), ("canine", modeling_canine)])
def test_every_key_that_the_model_code_reads_is_known_or_an_argument(family, code):
    text = inspect.getsource(code).split("ForSequenceClassification(")[0]
    read = set(re.findall(r"getattr\((?:self\.)?config, \"(\w+)\"", text))
    read |= set(re.findall(r"(?<![\w.])config\.(\w+)", text))
    of_every_model = {
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "num_labels",
        "pad_token_id",
    }
    known = set()
    for key in read - of_every_model - set(hf.ARGUMENT_OF):
        try:
            hf._check_keys(family, {key: None})
        except ValueError:
            continue
        known.add(key)
    assert read - of_every_model - set(hf.ARGUMENT_OF) - known == POOLING_KEYS[family]


def test_arguments_of_the_other_family_and_missing_ones_are_refused():
    with pytest.raises(ValueError, match="CANINE reads code points"):
        hf.build("canine", config={}, num_pieces=40, head_code_points=LETTERS, seed=0)
    with pytest.raises(ValueError, match="DeBERTa predicts pieces"):
        hf.build("deberta", config={}, num_pieces=40, head_code_points=LETTERS, seed=0)
    with pytest.raises(ValueError, match="num_pieces is None"):
        hf.build("deberta", config={}, seed=0)
    with pytest.raises(ValueError, match="give the code points of the corpus"):
        hf.build("canine", config={}, seed=0)
    with pytest.raises(ValueError, match="'bert' is unknown: the families are deberta, canine, auto"):
        hf.build("bert", config={}, seed=0)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("legacy", [True, False])
def test_loading_a_saved_model_finds_everything(legacy, tmp_path):
    model = build_deberta(legacy=legacy).eval()
    hf.save(model, tmp_path)
    loaded, report = hf.load("deberta", tmp_path, dropout=0.3)
    assert (report.new, report.unused, report.expected_loss) == ([], [], None)
    assert sorted(loaded.state_dict()) == report.loaded
    assert loaded.config.hidden_dropout_prob == loaded.config.attention_probs_dropout_prob == 0.3
    torch.testing.assert_close(loaded.eval()(INPUT_IDS).logits, model(INPUT_IDS).logits, rtol=0, atol=0)


def make_deberta_v3_folder(folder, **config) -> Any:
    """A folder like that of DeBERTa-v3: fp16, and weights of the head that its config does not name."""
    torch.manual_seed(0)
    model = DebertaV2ForMaskedLM(
        DebertaV2Config(**{**hf.DEBERTA_V3_STYLE, **DEBERTA, "vocab_size": 40, "legacy": False, **config})
    )
    nn.init.normal_(model.lm_predictions.lm_head.bias)
    model.half().save_pretrained(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"legacy": false', '"legacy": true'))
    return model.float().eval()


def test_the_head_of_deberta_v3_is_loaded_though_its_config_says_legacy(tmp_path):
    theirs = make_deberta_v3_folder(tmp_path)
    ours, report = hf.load("deberta", tmp_path)
    assert ours.config.legacy is ours.legacy is False
    assert "lm_predictions.lm_head.dense.weight" in report.loaded
    assert (report.new, report.unused, report.expected_loss) == ([], [], None)
    torch.testing.assert_close(ours.eval()(INPUT_IDS).logits, theirs(INPUT_IDS).logits, rtol=0, atol=0)


def test_weights_stored_in_fp16_are_loaded_in_fp32(tmp_path):
    make_deberta_v3_folder(tmp_path)
    assert DebertaV2ForMaskedLM.from_pretrained(tmp_path).dtype == torch.float16
    assert {parameter.dtype for parameter in hf.load("deberta", tmp_path)[0].parameters()} == {torch.float32}


def test_an_encoder_alone_gets_a_new_head_and_the_report_says_so(tmp_path):
    config = DebertaV2Config(**{**hf.DEBERTA_V3_STYLE, **DEBERTA, "vocab_size": 40, "legacy": True})
    DebertaV2Model(config).save_pretrained(tmp_path)
    _, report = hf.load("deberta", tmp_path)
    assert report.new
    assert all(name.startswith("cls.predictions.") for name in report.new)
    tied = "cls.predictions.decoder.weight"
    assert tied in report.loaded
    assert all(name.startswith("deberta.") for name in report.loaded if name != tied)
    assert report.expected_loss == pytest.approx(math.log(40))
    assert "head is new" in report.reason


def test_a_missing_part_of_the_encoder_and_weights_without_a_place_are_reported(tmp_path):
    build = build_deberta()
    hf.save(build, tmp_path)
    rename_weights(tmp_path, lambda name: name.replace("layer.1.output.dense", "layer.9.output.dense"))
    _, report = hf.load("deberta", tmp_path)
    assert report.new == [f"deberta.encoder.layer.1.output.dense.{kind}" for kind in ("bias", "weight")]
    assert report.unused == [f"deberta.encoder.layer.9.output.dense.{kind}" for kind in ("bias", "weight")]
    assert "part of the encoder is new" in report.reason


@pytest.mark.parametrize("has_prefix", [False, True])
def test_a_canine_encoder_folder_gets_a_head_for_the_code_points(has_prefix, tmp_path):
    torch.manual_seed(3)
    encoder = CanineModel(CanineConfig(**CANINE)).eval()
    encoder.save_pretrained(tmp_path)
    if has_prefix:
        rename_weights(tmp_path, lambda name: f"canine.{name}")
    model, report = hf.load("canine", tmp_path, head_code_points=[99, 98, 97, 98])
    assert isinstance(model, CanineForMaskedLM)
    assert model.config.head_code_points == [97, 98, 99]
    assert {name.split(".")[0] for name in report.new} == {"head"}
    assert len(report.unused) == 2
    assert all("pooler.dense" in name for name in report.unused)
    assert report.expected_loss == pytest.approx(math.log(4))
    torch.testing.assert_close(
        model.eval().canine(INPUT_IDS).last_hidden_state, encoder(INPUT_IDS).last_hidden_state, rtol=0, atol=0
    )


def test_a_saved_canine_keeps_its_table_and_takes_further_code_points(tmp_path):
    model = build_canine().eval()
    hf.save(model, tmp_path, CanineTokenizer())
    assert (tmp_path / "tokenizer_config.json").is_file()
    same, report = hf.load("canine", tmp_path)
    assert (report.new, report.unused, report.expected_loss) == ([], [], None)
    torch.testing.assert_close(same.eval()(INPUT_IDS).logits, model(INPUT_IDS).logits, rtol=0, atol=0)
    grown, _ = hf.load("canine", tmp_path, head_code_points=[97, 48])
    assert grown.config.head_code_points == [48, *LETTERS]


@pytest.mark.parametrize("legacy", [True, False])
def test_vocabularies_grow_and_never_shrink(legacy, tmp_path):
    model = build_deberta(legacy=legacy)
    rows = model.get_input_embeddings().weight.detach().clone()
    assert hf.grow_vocabulary(model, 30, {39: [4, 6]}) == 0
    assert model.config.vocab_size == 40
    assert hf.grow_vocabulary(model, 43, {41: [7], 42: [5, 7]}) == 3
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(weight[39], (rows[4] + rows[6]) / 2)
    torch.testing.assert_close(weight[41], rows[7])
    torch.testing.assert_close(weight[42], (rows[5] + rows[7]) / 2)
    torch.testing.assert_close(weight[:39], rows[:39])
    hf.save(model, tmp_path)
    theirs = DebertaV2ForMaskedLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(theirs(INPUT_IDS).logits, model.eval()(INPUT_IDS).logits, rtol=0, atol=0)
    loaded, _ = hf.load("deberta", tmp_path, num_pieces=50)
    assert loaded.config.vocab_size == loaded(INPUT_IDS).logits.shape[-1] == 50
    assert hf.load("deberta", tmp_path, num_pieces=7)[0].config.vocab_size == 43


def test_idle_parameters_stay_frozen_after_loading(tmp_path):
    hf.save(build_deberta(pos_att_type=[]), tmp_path)
    model, _ = hf.load("deberta", tmp_path)
    model(INPUT_IDS, labels=INPUT_IDS).loss_sum.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without
    assert without == [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def test_a_state_dict_can_stand_in_for_the_weights(tmp_path):
    model, other = build_deberta(seed=0), build_deberta(seed=1)
    hf.save(model, tmp_path, state_dict=other.state_dict())
    loaded, _ = hf.load("deberta", tmp_path)
    torch.testing.assert_close(
        loaded.eval()(INPUT_IDS).logits, other.eval()(INPUT_IDS).logits, rtol=0, atol=0
    )


def test_sources_that_cannot_be_read_say_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in ("microsoft/deberta-v3-base", str(tmp_path / "missing")):
        with pytest.raises(OSError, match=r"no network or the hub id is wrong; give a local folder"):
            hf.load("deberta", source)
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        hf.load("deberta", tmp_path)
    hf.save(build_deberta(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="lacks weights or they are damaged"):
        hf.load("deberta", tmp_path)


def test_another_kind_of_model_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model of type 'bert' and family 'canine' wants 'canine'"):
        hf.load("canine", tmp_path)


@pytest.mark.parametrize("builder", [build_deberta, build_canine, lambda: build_deberta(legacy=True)])
def test_biases_and_norm_weights_do_not_decay(builder):
    model = builder()
    norm_parameters = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
        for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters():
        expected = not name.endswith("bias") and id(parameter) not in norm_parameters
        assert hf.decays(name, parameter) == expected, name
    assert isinstance(model, (DebertaForMaskedLM, CanineForMaskedLM))


def test_decay_of_a_sharded_parameter_follows_its_whole_shape():
    parameter: Any = nn.Parameter(torch.empty(0))
    assert not hf.decays("deberta.encoder.layer.0.output.dense.weight", parameter)
    parameter.ds_shape = torch.Size([4, 4])
    assert hf.decays("deberta.encoder.layer.0.output.dense.weight", parameter)
