from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoTokenizer, CanineConfig, CanineModel, CanineTokenizer

from modeling import CanineForMaskedLM
from modeling.canine import (
    CLS_CODE_POINT,
    MASK_CODE_POINT,
    NUM_CODE_POINTS,
    SEP_CODE_POINT,
    check_code_points,
    row_slots,
)
from modeling.heads import IGNORED_LABEL

LETTERS = [ord("-"), *range(ord("a"), ord("z") + 1), 0x1F600]
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_hash_buckets": 600,
    "max_position_embeddings": 600,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def make_model(**changes) -> Any:
    """A tiny model whose weights are large enough for the neighbours of a slot to matter."""
    torch.manual_seed(5)
    model = CanineForMaskedLM(CanineConfig(**{**SMALL, **changes}), head_code_points=LETTERS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


MODEL = make_model()


def make_row(num_characters, num_slots):
    """One row of [CLS] letters [SEP] and padding, with its attention mask."""
    letters = torch.randint(
        97, 123, (num_characters,), generator=torch.Generator().manual_seed(num_characters)
    )
    row = torch.zeros(1, num_slots, dtype=torch.long)
    row[0, :num_characters] = letters
    row[0, 0], row[0, num_characters - 1] = CLS_CODE_POINT, SEP_CODE_POINT
    return row, (torch.arange(num_slots) < num_characters).long()[None]


@torch.no_grad()
def encode_directly(num_characters, num_slots):
    row, mask = make_row(num_characters, num_slots)
    return MODEL.canine(row, attention_mask=mask).last_hidden_state[0, :num_characters]


@pytest.mark.parametrize("num_characters", [3, 4, 5, 6, 13, 14, 15, 16, 97, 98, 99, 100])
def test_a_row_of_the_rule_gives_what_128_slots_give_and_4_slots_fewer_do_not(num_characters):
    expected = encode_directly(num_characters, 128)
    num_slots = row_slots(num_characters)
    assert num_slots == 4 * -(-(num_characters + 2) // 4) + 4
    torch.testing.assert_close(encode_directly(num_characters, num_slots), expected, rtol=0, atol=1e-5)
    assert num_slots - 4 >= num_characters
    assert (encode_directly(num_characters, num_slots - 4) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("num_characters", [125, 126, 127, 128, 129, 200, 255, 256, 257])
def test_the_rule_holds_across_the_windows_of_the_local_attention(num_characters):
    expected = encode_directly(num_characters, 512)
    torch.testing.assert_close(
        encode_directly(num_characters, row_slots(num_characters)), expected, rtol=0, atol=1e-5
    )


def test_a_window_of_padding_must_be_whole():
    assert [row_slots(n) for n in (126, 127, 128, 129)] == [132, 256, 256, 136]
    assert (encode_directly(127, 136) - encode_directly(127, 512)).abs().max() > 1e-3


@torch.no_grad()
def test_short_rows_are_padded_and_answered_for_the_slots_given():
    for num_characters in (2, 3, 7, 14, 127):
        expected = MODEL.head(encode_directly(num_characters, 512))
        for num_slots in (num_characters, num_characters + 1):
            row, mask = make_row(num_characters, num_slots)
            logits = MODEL(row, attention_mask=mask, token_type_ids=torch.zeros_like(row)).logits
            assert logits.shape == (1, num_slots, 1 + len(LETTERS))
            torch.testing.assert_close(logits[0, :num_characters], expected, rtol=1e-4, atol=1e-4)
        no_mask = MODEL(make_row(num_characters, num_characters)[0]).logits[0]
        torch.testing.assert_close(no_mask, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_each_row_of_a_batch_gets_the_slots_that_it_needs():
    rows, masks = zip(*(make_row(num_characters, 200) for num_characters in (127, 200, 5)), strict=True)
    logits = MODEL(torch.cat(rows), attention_mask=torch.cat(masks)).logits
    for row, num_characters in enumerate((127, 200, 5)):
        expected = MODEL.head(encode_directly(num_characters, 512))
        torch.testing.assert_close(logits[row, :num_characters], expected, rtol=1e-4, atol=1e-4)


def test_an_empty_row_in_a_batch_gives_finite_logits():
    row, mask = make_row(5, 8)
    logits = MODEL(torch.cat([row, row]), attention_mask=torch.cat([mask, torch.zeros_like(mask)])).logits
    assert logits.isfinite().all()


def test_rows_beyond_the_positions_are_refused_and_rows_near_the_end_are_not():
    with pytest.raises(ValueError, match="rows have 601 slots and the model 600 positions"):
        MODEL(torch.full((1, 601), 97))
    assert MODEL(torch.full((1, 599), 97)).logits.shape[1] == 599


def make_batch():
    rows, masks = zip(*(make_row(num_characters, 20) for num_characters in (9, 14, 3)), strict=True)
    input_ids, mask = torch.cat(rows), torch.cat(masks)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for position, character in {
        (0, 2): "a",
        (0, 7): "z",
        (1, 3): "\x00",
        (1, 4): "\u00e9",
        (2, 1): "\U0001f600",
    }.items():
        labels[position], input_ids[position] = ord(character), MASK_CODE_POINT
    return input_ids, mask, labels


def test_loss_is_that_of_the_full_logits_on_classes_looked_up_one_by_one():
    input_ids, mask, labels = make_batch()
    output = MODEL(input_ids, attention_mask=mask, labels=labels)
    class_of = {code_point: number for number, code_point in enumerate(LETTERS, start=1)}
    is_target = labels != IGNORED_LABEL
    classes = torch.tensor([class_of.get(label, 0) for label in labels[is_target].tolist()])
    assert classes.tolist() == [2, 27, 0, 0, 28]
    logits = MODEL(input_ids, attention_mask=mask).logits[is_target]
    expected = functional.cross_entropy(logits.double(), classes, reduction="sum").item()
    assert output.loss_sum.item() == pytest.approx(expected, rel=1e-5)
    assert output.loss.item() == pytest.approx(expected / 5, rel=1e-5)
    assert output.num_targets.item() == 5
    assert output.num_correct.item() == (logits.argmax(-1) == classes).sum().item()
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-5)


def test_labels_of_rows_that_are_padded_up_stay_at_their_slots():
    input_ids, mask, labels = make_batch()
    long = MODEL(input_ids, attention_mask=mask, labels=labels).loss_sum.item()
    short = MODEL(input_ids[:, :14], attention_mask=mask[:, :14], labels=labels[:, :14]).loss_sum.item()
    assert short == pytest.approx(long, rel=1e-5)


@given(
    st.lists(st.integers(0, NUM_CODE_POINTS - 1) | st.sampled_from([0, *LETTERS, 0x10FFFF, -100]), min_size=1)
)
def test_every_code_point_has_a_class(code_points):
    mapped = MODEL.map_labels(torch.tensor([code_points]))[0].tolist()
    class_of = {-100: -100, **{code_point: number for number, code_point in enumerate(LETTERS, start=1)}}
    assert mapped == [class_of.get(code_point, 0) for code_point in code_points]


@pytest.mark.parametrize("has_targets", [True, False])
def test_every_parameter_gets_a_finite_gradient(has_targets):
    model = make_model().train()
    input_ids, mask, labels = make_batch()
    if not has_targets:
        labels.fill_(IGNORED_LABEL)
    output = model(input_ids, attention_mask=mask, labels=labels)
    assert output.logits is None
    output.loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert has_targets or not parameter.grad.any(), name
    assert has_targets == (output.loss_sum.item() > 0)


def test_gradient_checkpointing_gives_the_same_gradients():
    plain, checkpointed = make_model().train(), make_model().train()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    input_ids, mask, labels = make_batch()
    num_calls = {plain: 0, checkpointed: 0}
    for model in (plain, checkpointed):
        model.canine.encoder.layer[0].output.dense.register_forward_hook(
            lambda *_, model=model: num_calls.__setitem__(model, num_calls[model] + 1)
        )
        model(input_ids, attention_mask=mask, labels=labels).loss_sum.backward()
    assert list(num_calls.values()) == [1, 2]
    for expected, parameter in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-6, atol=1e-7)


def test_a_folder_keeps_head_and_table(tmp_path):
    MODEL.save_pretrained(tmp_path)
    input_ids, mask, labels = make_batch()
    expected = MODEL(input_ids, attention_mask=mask, labels=labels)
    for loader in (CanineForMaskedLM, AutoModelForMaskedLM):
        model = loader.from_pretrained(tmp_path).eval()
        assert type(model) is CanineForMaskedLM
        assert model.code_points.tolist() == model.config.head_code_points == LETTERS
        output = model(input_ids, attention_mask=mask, labels=labels)
        torch.testing.assert_close(output.loss_sum, expected.loss_sum, rtol=0, atol=0)
        torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=0)


def test_an_encoder_folder_loads_and_only_the_head_is_new(tmp_path):
    torch.manual_seed(1)
    encoder = CanineModel(CanineConfig(**SMALL)).eval()
    encoder.save_pretrained(tmp_path)
    from_pretrained: Any = CanineForMaskedLM.from_pretrained
    model, found = from_pretrained(tmp_path, head_code_points=LETTERS, output_loading_info=True)
    assert {name.split(".")[0] for name in found["missing_keys"]} == {"head"}
    assert {name.split(".")[-3] for name in found["unexpected_keys"]} == {"pooler"}
    row, mask = make_row(14, 32)
    torch.testing.assert_close(
        model.eval().canine(row, attention_mask=mask).last_hidden_state,
        encoder(row, attention_mask=mask).last_hidden_state,
        rtol=0,
        atol=0,
    )


def test_the_encoder_of_a_saved_model_loads_in_transformers_alone(tmp_path):
    MODEL.save_pretrained(tmp_path)
    row, mask = make_row(14, 32)
    encoder = CanineModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    torch.testing.assert_close(
        encoder(row, attention_mask=mask).last_hidden_state,
        MODEL.canine(row, attention_mask=mask).last_hidden_state,
        rtol=0,
        atol=0,
    )


def test_added_code_points_start_as_other_characters_and_the_old_keep_their_scores():
    model = make_model()
    input_ids, mask, _ = make_batch()
    before = model(input_ids, attention_mask=mask).logits
    assert model.grow_code_points([ord("a"), ord("\u00e9"), ord("!")]) == [ord("!"), ord("\u00e9")]
    assert (
        model.config.head_code_points
        == model.code_points.tolist()
        == sorted([*LETTERS, ord("!"), ord("\u00e9")])
    )
    after = model(input_ids, attention_mask=mask).logits
    classes = model.map_labels(torch.tensor([ord("!"), ord("\u00e9"), *LETTERS]))
    torch.testing.assert_close(after[..., classes[2:]], before[..., 1:])
    torch.testing.assert_close(after[..., classes[:2]], before[..., :1].expand(-1, -1, 2))
    assert after.shape[-1] == model.head.decoder.out_features == 1 + len(LETTERS) + 2
    assert model.grow_code_points(LETTERS) == []


@pytest.mark.parametrize(
    "table", [None, [], "abc", [98, 97], [97, 97], [-1, 5], [97, NUM_CODE_POINTS], [97.0]]
)
def test_tables_that_are_none_are_refused(table):
    with pytest.raises(ValueError, match="head_code_points"):
        check_code_points(table)


def test_a_model_without_a_table_is_refused():
    with pytest.raises(ValueError, match=r"head_code_points=sorted\(set\(map\(ord, text\)\)\)"):
        CanineForMaskedLM(CanineConfig(**SMALL))


def test_the_tokenizer_masks_with_the_mask_code_point(tmp_path):
    MODEL.save_pretrained(tmp_path)
    CanineTokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == (chr(MASK_CODE_POINT), MASK_CODE_POINT)
    text = "a" + chr(MASK_CODE_POINT) + "b"
    assert tokenizer(text)["input_ids"] == [CLS_CODE_POINT, 97, MASK_CODE_POINT, 98, SEP_CODE_POINT]
