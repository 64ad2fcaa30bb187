import numpy as np
import torch

from launch.judging import scored
from launch.judging.scored import map_classes, round_losses, score_logits
from tests.modeling import small_canines


def test_losses_and_ranks_are_those_of_a_loop_in_float64(monkeypatch):
    monkeypatch.setattr(scored, "_CHUNK", 50)  # several chunks
    torch.manual_seed(0)
    logits = torch.randn(23, 17) * 4
    labels = torch.randint(0, 17, (23,))
    losses, ranks = score_logits(logits, labels)
    for row, label, loss, rank in zip(
        logits.numpy().astype(np.float64), labels.tolist(), losses, ranks, strict=True
    ):
        assert abs(loss - (np.log(np.exp(row).sum()) - row[label])) < 1e-7
        assert rank == sorted(range(17), key=lambda number: (-row[number], number)).index(label)


def test_a_model_that_prefers_nothing_is_not_right_everywhere():
    labels = torch.arange(6)
    losses, ranks = score_logits(torch.zeros(6, 6), labels)
    assert ranks.tolist() == list(range(6))
    np.testing.assert_allclose(losses, np.log(6), atol=1e-7)


def test_scores_that_are_no_numbers_are_never_right():
    logits = torch.zeros(3, 6)
    logits[0], logits[1, 2] = float("nan"), float("nan")
    losses, ranks = score_logits(logits, torch.tensor([0, 0, 0]))
    assert ranks[0] == 6
    assert ranks[2] == 0
    assert np.isnan(losses[:2]).all()


def test_no_targets_give_no_scores():
    losses, ranks = score_logits(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))
    assert losses.shape == ranks.shape == (0,)


def test_rounded_losses_sum_to_the_same_bits_in_any_order():
    generator = np.random.default_rng(0)
    raw = generator.gamma(2, 3, 100_000)
    losses = round_losses(raw)
    assert np.abs(losses - raw).max() <= 2.0**-25
    orders = [generator.permutation(len(raw)) for _ in range(20)]
    assert len({losses[order].cumsum()[-1] for order in orders}) == 1
    assert len({raw[order].cumsum()[-1] for order in orders}) > 1


def test_characters_are_classes_of_the_models_table():
    model = small_canines.make_model()
    labels = torch.tensor([ord("a"), ord("c"), 0x4E00])
    assert map_classes(model, labels).tolist() == [1, 3, 0]
    assert map_classes(torch.nn.Linear(1, 1), labels).tolist() == labels.tolist()
