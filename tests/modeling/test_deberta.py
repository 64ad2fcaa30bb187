import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, DebertaV2Config, DebertaV2ForMaskedLM

from modeling import DebertaForMaskedLM
from modeling.heads import IGNORED_LABEL

V3_STYLE: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_position_embeddings": 32,
}
STYLES: dict[str, dict[str, Any]] = {
    "v3": {**V3_STYLE, "legacy": False},
    "v3-legacy": {**V3_STYLE, "legacy": True},
    "v2-absolute": {"position_biased_input": True, "type_vocab_size": 2, "legacy": True},
    "v2-own-keys": {**V3_STYLE, "share_att_key": False, "position_buckets": -1, "conv_kernel_size": 3},
}


def make_config(style, **changes) -> Any:
    small: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return DebertaV2Config(**{**small, **STYLES[style], **changes})


def make_model(style, model_class: type[DebertaV2ForMaskedLM] = DebertaForMaskedLM, **changes) -> Any:
    """A tiny model whose weights are large enough for attention, positions and biases to matter."""
    torch.manual_seed(7)
    model = model_class(make_config(style, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def make_batch(num_rows=3, num_slots=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(1, 50, (num_rows, num_slots), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 13:] = 0
    labels = torch.where(torch.rand(input_ids.shape, generator=generator) < 0.3, input_ids, IGNORED_LABEL)
    labels[0, 0] = 0
    labels[attention_mask == 0] = IGNORED_LABEL
    return input_ids, attention_mask, labels


@pytest.fixture(params=list(STYLES))
def style(request):
    return request.param


def test_folders_move_both_ways_between_hugging_face_and_ours(style, tmp_path):
    theirs = make_model(style, DebertaV2ForMaskedLM)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = DebertaForMaskedLM.from_pretrained(tmp_path / "theirs").eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.save_pretrained(tmp_path / "ours")
    back = DebertaV2ForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    input_ids, attention_mask, _ = make_batch()
    expected = theirs(input_ids, attention_mask=attention_mask).logits
    for model in (ours, back):
        logits = model(input_ids, attention_mask=attention_mask).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_a_saved_folder_loads_in_transformers_alone(tmp_path):
    model = make_model("v3")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["DebertaV2ForMaskedLM"]
    script = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1]).eval()\n"
        "assert type(model).__module__.startswith('transformers.'), type(model)\n"
        "print(model(torch.arange(1, 9)[None]).logits.sum().item())\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    ).stdout
    assert float(printed) == pytest.approx(model(torch.arange(1, 9)[None]).logits.sum().item(), rel=1e-12)
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path)) is DebertaForMaskedLM


def test_loss_and_gradients_are_those_of_the_full_head(style):
    ours, theirs = make_model(style), make_model(style, DebertaV2ForMaskedLM)
    input_ids, attention_mask, labels = make_batch()
    output = ours(input_ids, attention_mask=attention_mask, labels=labels)
    reference = theirs(input_ids, attention_mask=attention_mask, labels=labels)
    output.loss.backward()
    reference.loss.backward()
    is_target = labels != IGNORED_LABEL
    assert output.num_targets.item() == is_target.sum().item()
    assert output.loss.item() == pytest.approx(reference.loss.item(), rel=1e-12)
    assert output.loss_sum.item() == pytest.approx(reference.loss.item() * is_target.sum().item(), rel=1e-12)
    torch.testing.assert_close(output.logits, reference.logits[is_target], rtol=1e-12, atol=1e-12)
    for (name, ours_parameter), theirs_parameter in zip(
        ours.named_parameters(), theirs.parameters(), strict=True
    ):
        torch.testing.assert_close(
            ours_parameter.grad,
            theirs_parameter.grad,
            rtol=1e-9,
            atol=1e-12,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_the_full_matrix_of_logits_is_not_computed_when_labels_are_given(style):
    model = make_model(style)
    rows_seen = []
    model.decode = lambda hidden, decode=model.decode: (rows_seen.append(hidden.shape), decode(hidden))[1]
    input_ids, attention_mask, labels = make_batch()
    model(input_ids, attention_mask=attention_mask, labels=labels)
    assert rows_seen == [((labels != IGNORED_LABEL).sum().item(), 16)]


def test_training_returns_no_logits():
    input_ids, attention_mask, labels = make_batch()
    assert make_model("v3").train()(input_ids, attention_mask=attention_mask, labels=labels).logits is None


@pytest.mark.parametrize("has_targets", [True, False])
def test_every_parameter_gets_a_finite_gradient(style, has_targets):
    model = make_model(style).train()
    input_ids, attention_mask, labels = make_batch()
    if not has_targets:
        labels.fill_(IGNORED_LABEL)
    output = model(input_ids, attention_mask=attention_mask, labels=labels)
    output.loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert has_targets or not parameter.grad.any(), name
    assert has_targets == (output.loss_sum.item() > 0)


@pytest.mark.parametrize(
    "changes", [{"relative_attention": False}, {"pos_att_type": []}, {"pos_att_type": ["c2p"]}]
)
def test_parameters_that_a_configuration_leaves_idle_ask_for_no_gradient(changes):
    model = make_model("v3", **changes).train()
    input_ids, attention_mask, labels = make_batch()
    model(input_ids, attention_mask=attention_mask, labels=labels).loss_sum.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert bool(without) == (changes != {"pos_att_type": ["c2p"]})


LENGTHS = ([9, 4, 1], [14], [3, 3, 7])


def pack(rows, num_slots=18):
    generator = torch.Generator().manual_seed(3)
    documents = [[torch.randint(1, 50, (n,), generator=generator) for n in lengths] for lengths in rows]
    input_ids = torch.zeros(len(rows), num_slots, dtype=torch.long)
    document_ids = torch.zeros_like(input_ids)
    for row, parts in enumerate(documents):
        input_ids[row, : sum(map(len, parts))] = torch.cat(parts)
        owners = [torch.full((len(part),), number) for number, part in enumerate(parts, start=1)]
        document_ids[row, : sum(map(len, parts))] = torch.cat(owners)
    return documents, input_ids, document_ids


@pytest.mark.parametrize(
    "changes", [{}, {"legacy": True}, {"position_buckets": -1}, {"relative_attention": False}]
)
def test_packed_documents_give_the_outputs_of_the_documents_alone(changes):
    model = make_model("v3", **changes)
    documents, input_ids, document_ids = pack(LENGTHS)
    packed = model(input_ids, document_ids=document_ids).logits
    for row, parts in enumerate(documents):
        start = 0
        for part in parts:
            alone = model(part[None]).logits[0]
            torch.testing.assert_close(packed[row, start : start + len(part)], alone, rtol=0, atol=1e-11)
            start += len(part)
    unpacked = model(input_ids, attention_mask=(document_ids > 0).long()).logits
    assert (unpacked - packed)[0, :9].abs().max() > 1e-3


def test_packed_loss_and_gradients_are_the_sums_over_documents():
    packed_model, alone_model = make_model("v3").train(), make_model("v3").train()
    documents, input_ids, document_ids = pack(LENGTHS)
    labels = torch.where((document_ids > 0) & (input_ids % 3 == 0), input_ids, IGNORED_LABEL)
    output = packed_model(input_ids, document_ids=document_ids, labels=labels)
    output.loss_sum.backward()
    total = 0.0
    for part in (part for parts in documents for part in parts):
        alone = alone_model(part[None], labels=torch.where(part % 3 == 0, part, IGNORED_LABEL)[None])
        alone.loss_sum.backward()
        total += alone.loss_sum.item()
    assert output.loss_sum.item() == pytest.approx(total, rel=1e-12)
    for packed_parameter, alone_parameter in zip(
        packed_model.parameters(), alone_model.parameters(), strict=True
    ):
        torch.testing.assert_close(packed_parameter.grad, alone_parameter.grad, rtol=1e-9, atol=1e-11)


def test_an_attention_mask_still_counts_beside_document_ids():
    model = make_model("v3")
    _, input_ids, document_ids = pack([[6, 5]])
    mask = (document_ids > 0).long()
    mask[0, 4:6] = 0
    shorter = torch.where(mask > 0, document_ids, 0)
    torch.testing.assert_close(
        model(input_ids, attention_mask=mask, document_ids=document_ids).logits[0, :4],
        model(input_ids, document_ids=shorter).logits[0, :4],
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(
    ("style", "named"),
    [("v2-absolute", "position_biased_input is True"), ("v2-own-keys", "conv_kernel_size is 3")],
)
def test_packing_is_refused_where_it_would_change_the_outputs(style, named):
    _, input_ids, document_ids = pack(LENGTHS)
    with pytest.raises(ValueError, match=named):
        make_model(style)(input_ids, document_ids=document_ids)


def test_growth_keeps_old_logits_ties_and_the_way_back_to_hugging_face(style, tmp_path):
    model = make_model(style)
    input_ids, attention_mask, labels = make_batch()
    before = model(input_ids, attention_mask=attention_mask).logits
    old_rows = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(53, pad_to_multiple_of=8)
    after = model(input_ids, attention_mask=attention_mask).logits
    assert after.shape[-1] == model.config.vocab_size == 56
    torch.testing.assert_close(after[..., :50], before, rtol=1e-12, atol=1e-12)
    new_rows = model.get_input_embeddings().weight[50:].detach()
    torch.testing.assert_close(new_rows, old_rows.mean(0).expand_as(new_rows), rtol=1e-12, atol=1e-12)
    if model.legacy:
        assert model.cls.predictions.decoder.weight is model.get_input_embeddings().weight
        assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    model(input_ids, attention_mask=attention_mask, labels=labels).loss_sum.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    theirs = DebertaV2ForMaskedLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(theirs(input_ids, attention_mask=attention_mask).logits, after, rtol=0, atol=0)


def test_shrinking_is_refused(style):
    model = make_model(style)
    with pytest.raises(ValueError, match="has 50 pieces and 49 were asked for"):
        model.resize_token_embeddings(49)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(50).num_embeddings == 50


def test_pieces_start_from_the_means_of_the_values_before_the_call(style):
    model = make_model(style)
    rows = model.get_input_embeddings().weight.detach().clone()
    head = model.cls.predictions if model.legacy else model.lm_predictions.lm_head
    biases = head.bias.detach().clone()
    model.average_pieces({48: [3, 5], 49: [48]})
    torch.testing.assert_close(model.get_input_embeddings().weight[48], (rows[3] + rows[5]) / 2)
    torch.testing.assert_close(model.get_input_embeddings().weight[49], rows[48])
    torch.testing.assert_close(head.bias[48], (biases[3] + biases[5]) / 2)
    torch.testing.assert_close(model.get_input_embeddings().weight[:48], rows[:48])


@pytest.mark.parametrize("old_pieces", [{50: [1]}, {4: [50]}, {4: []}, {4: [-1]}])
def test_pieces_that_the_model_lacks_are_refused(old_pieces):
    with pytest.raises(ValueError, match="give at least one, all below 50"):
        make_model("v3").average_pieces(old_pieces)


def test_gradient_checkpointing_gives_the_same_gradients():
    plain, checkpointed = make_model("v3").train(), make_model("v3").train()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _, input_ids, document_ids = pack(LENGTHS)
    labels = torch.where((document_ids > 0) & (input_ids % 3 == 0), input_ids, IGNORED_LABEL)
    num_calls = {plain: 0, checkpointed: 0}
    for model in (plain, checkpointed):
        dense = model.deberta.encoder.layer[0].output.dense
        dense.register_forward_hook(
            lambda *_, model=model: num_calls.__setitem__(model, num_calls[model] + 1)
        )
        model(input_ids, document_ids=document_ids, labels=labels).loss_sum.backward()
    assert list(num_calls.values()) == [1, 2]
    for expected, parameter in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-12, atol=1e-12)


def test_embeddings_hidden_states_and_tuples_work_as_in_hugging_face():
    ours, theirs = make_model("v3"), make_model("v3", DebertaV2ForMaskedLM)
    input_ids, attention_mask, _ = make_batch()
    embeds = ours.get_input_embeddings()(input_ids)
    options = {"attention_mask": attention_mask, "output_hidden_states": True, "output_attentions": True}
    output = ours(inputs_embeds=embeds, **options)
    expected = theirs(inputs_embeds=embeds, **options)
    for name in ("logits", "hidden_states", "attentions"):
        torch.testing.assert_close(output[name], expected[name], rtol=0, atol=0)
    (logits,) = ours(input_ids, attention_mask=attention_mask, return_dict=False)
    torch.testing.assert_close(logits, output.logits, rtol=0, atol=0)


def test_unknown_options_and_missing_inputs_are_refused():
    model = make_model("v3")
    input_ids, _, _ = make_batch()
    with pytest.raises(TypeError, match="forward got document_id: the options are"):
        model(input_ids, document_id=input_ids)
    for inputs in ({}, {"input_ids": input_ids, "inputs_embeds": model.get_input_embeddings()(input_ids)}):
        with pytest.raises(ValueError, match="one of the two"):
            model(**inputs)
