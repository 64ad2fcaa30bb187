"""Other families: equal to transformers' own models, with less work where it is known how."""

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertConfig, BertModel, ElectraConfig, ElectraForMaskedLM

from modeling import general, hf
from modeling.heads import IGNORED_LABEL

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**SIZES, "model_type": "bert", "max_position_embeddings": 64, "type_vocab_size": 2},
    "roberta": {**SIZES, "model_type": "roberta", "max_position_embeddings": 70},
    "modernbert": {**SIZES, "model_type": "modernbert", "num_hidden_layers": 3, "local_attention": 8},
    "electra": {**SIZES, "model_type": "electra", "embedding_size": 12},
}
KNOWN = ["bert", "roberta", "modernbert"]
NUM_PIECES = 50


def build(name, seed=0, **changes) -> Any:
    """A model in double precision whose weights are so large that attention and positions matter."""
    config = {**CONFIGS[name], **changes}
    model: Any = hf.build("auto", config=config, num_pieces=NUM_PIECES, dropout=0.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.double().eval()


def build_theirs(ours) -> Any:
    """transformers' own model of the same weights."""
    theirs: Any = AutoModelForMaskedLM.from_config(ours.config)
    theirs.double().eval().load_state_dict(ours.state_dict())
    assert not isinstance(theirs, general.TargetScoring)
    return theirs


def make_batch(num_rows=3, num_slots=30):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(2, NUM_PIECES, (num_rows, num_slots), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 20:] = 0
    labels = torch.where(torch.rand(input_ids.shape, generator=generator) < 0.3, input_ids, IGNORED_LABEL)
    labels[0, 0] = 0
    labels[attention_mask == 0] = IGNORED_LABEL
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_loss_and_gradients_are_those_of_transformers(name):
    ours, batch = build(name), make_batch()
    theirs = build_theirs(ours)
    output, reference = ours(**batch), theirs(**batch)
    num_targets = int((batch["labels"] != IGNORED_LABEL).sum())
    assert output.num_targets.item() == num_targets
    # ModernBERT's own loss is in fp32.
    assert output.loss.item() == pytest.approx(reference.loss.item(), rel=1e-6)
    loss = torch.nn.functional.cross_entropy(reference.logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(output.loss, loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(output.loss_sum, loss * num_targets, rtol=1e-10, atol=0)
    is_target = batch["labels"] != IGNORED_LABEL
    torch.testing.assert_close(output.logits, reference.logits[is_target], rtol=1e-8, atol=1e-10)
    hits = reference.logits.argmax(-1)[is_target] == batch["labels"][is_target]
    assert output.num_correct.item() == hits.sum().item()
    output.loss.backward()
    loss.backward()
    for (key, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-8, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_without_labels_the_logits_are_those_of_transformers(name):
    ours, batch = build(name), make_batch()
    del batch["labels"]
    torch.testing.assert_close(
        ours(**batch).logits, build_theirs(ours)(**batch).logits, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", KNOWN)
def test_the_head_runs_at_the_targets_only(name):
    model, batch, shapes = build(name).train(), make_batch(), []
    model.get_output_embeddings().register_forward_hook(lambda *call: shapes.append(call[2].shape))
    assert model(**batch).logits is None
    assert shapes == [(int((batch["labels"] != IGNORED_LABEL).sum()), NUM_PIECES)]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_batch_without_targets_gives_gradients_of_zero(name):
    model, batch = build(name), make_batch()
    batch["labels"] = torch.full_like(batch["labels"], IGNORED_LABEL)
    output = model(**batch)
    output.loss_sum.backward()
    assert output.loss_sum.item() == output.loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", KNOWN)
def test_packed_documents_are_those_of_the_documents_alone(name, kernel):
    model = build(name)
    model.set_attn_implementation(kernel)
    # ModernBERT's eager softmax is in fp32.
    near = (
        {"rtol": 1e-3, "atol": 1e-5}
        if (name, kernel) == ("modernbert", "eager")
        else {"rtol": 1e-9, "atol": 1e-11}
    )
    lengths = ((12, 5, 1, 9), (30,), (3, 20))
    batch = make_batch(3, 30)
    document_ids = torch.zeros_like(batch["input_ids"])
    for row, parts in enumerate(lengths):
        owners = [torch.full((length,), number) for number, length in enumerate(parts, start=1)]
        document_ids[row, : sum(parts)] = torch.cat(owners)
    mask = (document_ids > 0).long()
    packed = model(batch["input_ids"], attention_mask=mask, document_ids=document_ids).logits
    labels = torch.where(document_ids > 0, batch["labels"], IGNORED_LABEL)
    whole = model(batch["input_ids"], attention_mask=mask, document_ids=document_ids, labels=labels)
    assert torch.isfinite(packed).all()
    loss_sum = 0.0
    for row, parts in enumerate(lengths):
        start = 0
        for length in parts:
            piece = slice(start, start + length)
            own_labels = labels[None, row, piece]
            alone = model(batch["input_ids"][None, row, piece]).logits
            torch.testing.assert_close(packed[row, piece], alone[0], **near)
            if (own_labels != IGNORED_LABEL).any():
                loss_sum += model(batch["input_ids"][None, row, piece], labels=own_labels).loss_sum.item()
            start += length
    assert whole.loss_sum.item() == pytest.approx(loss_sum, rel=near["rtol"] / 10)


def test_packing_is_refused_where_nobody_knows_that_it_is_exact():
    batch = make_batch()
    with pytest.raises(ValueError, match="nobody checked what electra does .* give one document a row"):
        build("electra")(**batch, document_ids=batch["attention_mask"])
    model = build("bert")
    find_obstacle: Any = general.find_packing_obstacle
    model.config._attn_implementation = "flash_attention_2"
    assert "'flash_attention_2' takes no mask" in find_obstacle(model)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_saved_folder_is_a_plain_one_and_comes_back(name, tmp_path):
    model = build(name).float()
    hf.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(build_theirs(model)).__name__]
    script = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1]).eval()\n"
        "assert 'modeling' not in sys.modules\n"
        "torch.save(model(torch.arange(2, 22)[None]).logits, sys.argv[1] + '/logits.pt')\n"
    )
    if name == "modernbert":  # starting a process takes seconds, and one says it
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=tmp_path)
        theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
        torch.testing.assert_close(theirs, model(torch.arange(2, 22)[None]).logits)
    loaded, report = hf.load("auto", tmp_path)
    assert isinstance(loaded, general.TargetScoring)
    assert (report.new, report.unused, report.expected_loss) == ([], [], None)
    batch = make_batch()
    expected = model(**batch).loss_sum
    torch.testing.assert_close(loaded.eval()(**batch).loss_sum, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone(name):
    state = torch.get_rng_state()
    builds = [
        hf.build("auto", config=CONFIGS[name], num_pieces=NUM_PIECES, seed=seed).state_dict()
        for seed in (4, 4, 5)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(builds[0][key], builds[1][key]) for key in builds[0])
    assert any(not torch.equal(builds[0][key], builds[2][key]) for key in builds[0])


@pytest.mark.parametrize("name", list(CONFIGS))
def test_vocabularies_grow_from_the_mean_and_from_old_pieces(name, tmp_path):
    model = build(name).float()
    hf.save(model, tmp_path)
    grown, _ = hf.load("auto", tmp_path, num_pieces=NUM_PIECES + 3, old_pieces={NUM_PIECES + 1: [7, 9]})
    loaded: Any = grown
    before, after = (one.get_input_embeddings().weight for one in (model, loaded))
    assert loaded.config.vocab_size == after.shape[0] == NUM_PIECES + 3
    torch.testing.assert_close(after[:NUM_PIECES], before, rtol=0, atol=0)
    torch.testing.assert_close(after[NUM_PIECES], before.mean(0))
    torch.testing.assert_close(after[NUM_PIECES + 1], before[[7, 9]].mean(0))
    ids = torch.arange(2, 22)[None]
    old, new = model(ids).logits, loaded.eval()(ids).logits
    torch.testing.assert_close(new[..., :NUM_PIECES], old)
    torch.testing.assert_close(new[..., NUM_PIECES + 1], old[..., [7, 9]].mean(-1))
    torch.testing.assert_close(new[..., NUM_PIECES], old.mean(-1))
    assert hf.load("auto", tmp_path, num_pieces=7)[0].config.vocab_size == NUM_PIECES


def test_an_encoder_alone_gets_a_new_head_and_the_report_says_so(tmp_path):
    BertModel(BertConfig(**SIZES, vocab_size=NUM_PIECES)).save_pretrained(tmp_path)
    _, report = hf.load("auto", tmp_path)
    assert report.new
    assert all(name.startswith("cls.") for name in report.new)
    assert "the head is new" in report.reason


def test_dropout_reaches_every_rate_but_that_of_a_classifier():
    for name, config in CONFIGS.items():
        model: Any = hf.build("auto", config=config, num_pieces=NUM_PIECES, dropout=0.25, seed=0)
        rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert rates == {0.25}, name
    with pytest.raises(ValueError, match=r"dropout is 1\.0"):
        hf.build("auto", config=CONFIGS["bert"], num_pieces=NUM_PIECES, dropout=1.0, seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "deberta-v2"}, "has a family of its own.*family: deberta"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'.* bert, roberta or modernbert"),
        ({"hidden_size": 16}, "model_type is None"),
        ({**CONFIGS["bert"], "hidden_sise": 16}, "did you mean 'hidden_size'"),
        ({**CONFIGS["modernbert"], "mlp_dropout": 0.1}, "give the argument dropout"),
    ],
)
def test_configurations_that_make_no_model_say_what_to_give(config, message):
    with pytest.raises(ValueError, match=message):
        hf.build("auto", config=config, num_pieces=NUM_PIECES, seed=0)


def test_folders_of_other_kinds_code_and_pickles_are_refused(tmp_path):
    hf.save(hf.build("deberta", config=SIZES, num_pieces=50, seed=0), tmp_path / "deberta")
    with pytest.raises(ValueError, match="has a family of its own"):
        hf.load("auto", tmp_path / "deberta")
    ElectraForMaskedLM(ElectraConfig(**SIZES, vocab_size=50)).save_pretrained(tmp_path / "electra")
    weights = tmp_path / "electra" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ValueError, match="weights in pickles only"):
        hf.load("auto", tmp_path / "electra")
    config = tmp_path / "electra" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ValueError, match="brings Python code of its own"):
        hf.load("auto", tmp_path / "electra")


@pytest.mark.parametrize("name", KNOWN)
def test_checkpointed_layers_give_the_same_gradients(name):
    plain, checkpointed, batch = build(name).train(), build(name).train(), make_batch()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, checkpointed):
        model(**batch).loss_sum.backward()
    for own, other in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-10, atol=1e-12)
