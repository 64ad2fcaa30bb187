from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch

from data_pipes.collate import CLS_CHARACTER, MASK_CHARACTER, SEP_CHARACTER
from data_pipes.rows import Rows
from launch.judging import suite as suite_module
from launch.judging.lengths import LengthMetric, bound_share, choose_runs
from launch.judging.words import take_all
from modeling import hf
from tests.launch.judging.small import run_ranks
from tests.launch.judging.test_suite import CANINE, Setting

NAMES = ["a", "bc", "example.com", "shop.co.uk", "x.org", "news.example.org", "", "abcdefgh.net"]


def make_rows(names):
    code_points = np.array([ord(character) for name in names for character in name], np.uint32)
    offsets = np.cumsum([0, *map(len, names)])
    starts = np.zeros(len(code_points), bool)
    starts[offsets[:-1][np.diff(offsets) > 0]] = True
    return Rows(code_points, offsets, np.ones(len(code_points), bool), starts)


def list_runs(rows, may_hide, length):
    """Every place of a run, name by name."""
    found = set()
    for row in range(rows.num_rows):
        start, stop = rows.offsets[row], rows.offsets[row + 1]
        for first in range(start, stop - length + 1):
            if stop - start > length and may_hide[first : first + length].all():
                found.add((row, int(first - start)))
    return found


def test_runs_are_of_every_length_in_names_of_their_own_and_where_they_may_be():
    rows = make_rows(NAMES)
    may_hide = np.array([chr(character) != "." for character in rows.pieces])
    lengths = (1, 2, 3, 5, 9)
    spans, numbers = choose_runs(rows, may_hide, lengths, num_spans=4, seed=1)
    for number, length in enumerate(lengths):
        chosen = spans.take((numbers == number).nonzero()[0])
        possible = list_runs(rows, may_hide, length)
        assert set(chosen.lengths.tolist()) <= {length}
        assert set(zip(chosen.rows.tolist(), chosen.firsts.tolist(), strict=True)) <= possible
        num_rows = len({row for row, _ in possible})
        assert len(set(chosen.rows.tolist())) == chosen.num_spans == min(4, num_rows)
    assert not list_runs(rows, may_hide, 9)


def test_rows_and_places_are_drawn_by_chance_and_by_the_seed_alone():
    rows = make_rows(["abcdef"] * 3000)
    may_hide = np.ones(len(rows.pieces), bool)
    spans, _ = choose_runs(rows, may_hide, [3], num_spans=1200, seed=5)
    # 4 places, 300 each: 5 standard deviations are 75.
    assert all(abs(count - 300) < 75 for count in Counter(spans.firsts.tolist()).values())
    assert set(spans.firsts.tolist()) == {0, 1, 2, 3}
    assert spans.rows.mean() == pytest.approx(1500, abs=5 * 3000 / 12**0.5 / 1200**0.5)
    again, _ = choose_runs(rows, may_hide, [1, 3], num_spans=1200, seed=5)
    assert again.take(np.arange(1200, 2400)).rows.tolist() == spans.rows.tolist()
    assert choose_runs(rows, may_hide, [3], num_spans=1200, seed=6)[0].rows.tolist() != spans.rows.tolist()


def test_wilsons_interval_is_the_root_of_its_definition():
    for right, count in ((0, 7), (3, 7), (7, 7), (50, 200)):
        for bound in bound_share(right, count):
            # The share that is 1.96 standard errors (of its own) from the one observed.
            distance = (right / count - bound) ** 2
            assert distance == pytest.approx(1.959964**2 * bound * (1 - bound) / count, abs=1e-12)
    assert bound_share(0, 7)[0] == 0
    assert bound_share(7, 7)[1] == 1


def test_a_length_that_does_not_occur_has_no_figure():
    found = LengthMetric([1, 4]).compute(cluster=[0, 0], loss=[1.0, 2.0], num_pieces=[1, 1], is_right=[1, 0])
    assert found["1/exact"] == 0.5
    assert found["1/perplexity"] == pytest.approx(np.exp(1.5))
    assert not [name for name in found if name.startswith("4")]


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    names = {
        "".join(generator.choice(list("abc"), generator.integers(2, 9)))
        + generator.choice([".com", ".co.uk"])
        for _ in range(150)
    }
    (tmp_path / "names.txt").write_text("\n".join(sorted(names)))
    return Setting(
        CANINE,
        [f"data.sources=[{{kind: text, path: {tmp_path / 'names.txt'}}}]", "data.evaluation_share=0.4"],
    )


@pytest.fixture
def model(setting):
    config = setting.recipe.model.config | {
        "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32
    }  # fmt: skip
    code_points = setting.store.code_points.tolist()
    model = hf.build("canine", config=config, head_code_points=code_points, dropout=0.0, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        # Sure of one letter, so that some runs are right.
        decoder: Any = model.head.decoder
        decoder.bias[1 + code_points.index(ord("a"))] += 3
    return model.eval()


def score_alone(model, name, first, length):
    """Whether a gap is filled without a fault, and its loss: one name by itself, summed in float64."""
    shown = name.copy()
    shown[first : first + length] = MASK_CHARACTER
    input_ids = torch.tensor([[CLS_CHARACTER, *shown.tolist(), SEP_CHARACTER]])
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits[0, 1:-1].double()[first : first + length]
    own = model.map_labels(torch.tensor(name[first : first + length].astype(np.int64)))
    loss = torch.nn.functional.cross_entropy(logits, own, reduction="sum")
    return bool((logits.argmax(1) == own).all()), float(loss)


def test_recovery_by_length_is_that_of_names_run_one_by_one(setting, model):
    suite = setting.build(names={"max_span": 4, "num_spans": 15})
    found = suite.measure(model)
    (section,) = suite.spans
    rows, spans = take_all(setting.store.evaluation), section.rows.spans
    expected = defaultdict(list)
    for row, first, length in zip(spans.rows, spans.firsts, spans.lengths, strict=True):
        name = rows.pieces[rows.offsets[row] : rows.offsets[row + 1]].astype(np.int64)
        expected[int(length)].append(score_alone(model, name, int(first), int(length)))
    assert set(expected) == {1, 2, 3, 4}
    for length, results in expected.items():
        right, losses = zip(*results, strict=True)
        prefix = f"eval/main/names/span/{length}"
        assert found[f"{prefix}/num_spans"] == len(results) == 15
        assert found[f"{prefix}/exact"] == sum(right) / 15
        assert found[f"{prefix}/perplexity"] == pytest.approx(np.exp(sum(losses) / (15 * length)), rel=1e-4)
        assert found[f"{prefix}/exact_low"] <= found[f"{prefix}/exact"] <= found[f"{prefix}/exact_high"]
    assert 0 < found["eval/main/names/span/1/exact"] < 1
    assert found["eval/main/names/span/1/exact"] > found["eval/main/names/span/4/exact"]


def test_two_ranks_give_the_bits_of_one_at_every_length(setting, model, monkeypatch):
    wanted = {"names": {"max_span": 4, "num_spans": 15}}
    one = setting.build(**wanted).measure(model)

    def run(rank, add):
        monkeypatch.setattr(suite_module, "sum_over_ranks", add)
        return setting.build(rank, 2, **wanted).measure(model)

    assert run_ranks(2, run) == [one, one]


def test_a_suffix_that_training_never_hides_is_in_no_gap(setting):
    masking = setting.recipe.objective.masking.model_copy(update={"public_suffix": "never"})
    objective = setting.recipe.objective.model_copy(update={"masking": masking})
    setting.recipe = setting.recipe.model_copy(update={"objective": objective})
    from launch.build import build_masking

    setting.masking = build_masking(setting.recipe, setting.tokenizer, setting.store, is_frozen=True)
    (section,) = setting.build(names={"max_span": 3, "num_spans": 40}).spans
    rows, spans = take_all(setting.store.evaluation), section.rows.spans
    hidden = set()
    for row, first, length in zip(spans.rows, spans.firsts, spans.lengths, strict=True):
        start = rows.offsets[row] + first
        hidden |= set(map(chr, rows.pieces[start : start + length].tolist()))
    assert hidden == {"a", "b", "c"}
