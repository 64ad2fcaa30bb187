import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from modeling import attention_blocks, attention_flash
from modeling.attention import choose_kernel, read_diagonals
from modeling.attention_blocks import Settings, draw_dropout, keep_share
from modeling.attention_kernels import _read_inputs, disentangled_attention
from modeling.attention_positions import Positions, view_diagonals

HEADS, SIZE, ROWS = 2, 8, 3


def make_inputs(length, positions, *, kinds=("c2p", "p2c"), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = HEADS * SIZE

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    states = [draw(ROWS, length, width) for _ in range(3)]
    tables = [draw(2 * positions.span, width) if kind in kinds else None for kind in ("c2p", "p2c")]
    allowed = torch.rand(ROWS, length, length, generator=generator) < 0.6
    allowed[0, 0] = False
    allowed |= torch.eye(length, dtype=torch.bool) & (torch.arange(length) > 0)
    return [*states, *tables], allowed


def attend_slowly(tensors, allowed, positions, scale, kept=None):
    """All of it at once, by the table rows of every pair; `kept` [H, B, L, L] is a scaled dropout mask."""
    query, key, value, key_table, query_table = (
        None if tensor is None else tensor.unflatten(-1, (HEADS, SIZE)).transpose(-2, -3)
        for tensor in tensors
    )
    length = query.shape[2]
    slots = torch.arange(length)
    rows = positions.rows(length)[slots[:, None] - slots + length - 1]
    scores = query @ key.transpose(-1, -2)
    if key_table is not None:
        scores = scores + torch.einsum("bhie,hije->bhij", query, key_table[:, rows])
    if query_table is not None:
        scores = scores + torch.einsum("bhje,hije->bhij", key, query_table[:, rows])
    scores = (scores / scale).masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1)
    if kept is not None:
        probabilities = probabilities * kept.transpose(0, 1)
    return (probabilities @ value).transpose(1, 2).flatten(2)


def attend(tensors, allowed, positions, *, scale=5.0, dropout=0.0, recompute=False, seed=3):
    numbers = [HEADS, *positions, scale, dropout, recompute]
    return disentangled_attention(*tensors, allowed, torch.tensor([seed]), numbers)


def differentiate(contexts, tensors):
    weights = torch.randn(contexts.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = [tensor for tensor in tensors if tensor is not None]
    return torch.autograd.grad(contexts, given, weights.to(contexts.dtype))


@pytest.mark.parametrize("length", [1, 2, 7, 64, 65, 130])
@pytest.mark.parametrize(("buckets", "most"), [(16, 40), (-1, 200), (-1, 9), (8, 512)])
def test_distances_map_to_the_rows_that_hugging_face_gathers(length, buckets, most):
    positions = Positions(buckets, most)
    states = torch.zeros(1, length, 4)
    relative = build_relative_position(states, states, buckets, most)[0]
    expected = (relative + positions.span).clamp(0, 2 * positions.span - 1)
    slots = torch.arange(length)
    rows = positions.rows(length)
    assert torch.equal(rows[slots[:, None] - slots + length - 1], expected)
    # The second table is read with the distance turned round, and the sign with it.
    assert torch.equal(
        rows[slots[:, None] - slots + length - 1],
        (-relative.T + positions.span).clamp(0, 2 * positions.span - 1),
    )


@pytest.mark.parametrize("length", [1, 5, 64, 65, 150])
@pytest.mark.parametrize("kinds", [("c2p", "p2c"), ("c2p",), ("p2c",), ()])
@pytest.mark.parametrize("positions", [Positions(16, 40), Positions(-1, 20), Positions(-1, 300)])
def test_contexts_and_gradients_are_those_of_the_whole_index_matrix(length, kinds, positions):
    tensors, allowed = make_inputs(length, positions, kinds=kinds)
    contexts, _ = attend(tensors, allowed, positions)
    expected = attend_slowly(tensors, allowed, positions, 5.0)
    torch.testing.assert_close(contexts, expected, rtol=1e-11, atol=1e-12)
    for found, wanted in zip(differentiate(contexts, tensors), differentiate(expected, tensors), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_rows_of_several_chunks_give_the_same(monkeypatch):
    positions = Positions(16, 40)
    tensors, allowed = make_inputs(70, positions)
    expected = attend(tensors, allowed, positions)[0]
    gradients = differentiate(expected, tensors)
    monkeypatch.setattr(attention_blocks, "CHUNK_SCORES", 2 * 70 * 70)
    contexts = attend(tensors, allowed, positions)[0]
    torch.testing.assert_close(contexts, expected, rtol=1e-12, atol=1e-13)
    for found, wanted in zip(differentiate(contexts, tensors), gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_low_precision_stays_near_float64(dtype, tolerance):
    positions = Positions(16, 40)
    tensors, allowed = make_inputs(130, positions)
    expected = attend_slowly(tensors, allowed, positions, 5.0)
    low = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in low]
    expected = attend_slowly(exact, allowed, positions, 5.0)
    contexts = attend(low, allowed, positions)[0]
    assert contexts.dtype == dtype
    pairs = [
        (contexts, expected),
        *zip(differentiate(contexts, low), differentiate(expected, exact), strict=True),
    ]
    for found, wanted in pairs:
        error = (found.double() - wanted).norm() / wanted.norm()
        assert error < tolerance


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_under_dropout_are_those_of_the_mask_that_was_drawn(recompute):
    positions, rate = Positions(16, 40), 0.25
    tensors, allowed = make_inputs(70, positions)
    signed = attend(tensors, allowed, positions, dropout=rate)[1].detach()
    is_dropped = torch.signbit(signed)
    assert 0.2 < is_dropped[signed != 0].double().mean() < 0.3
    kept = (~is_dropped).double() / keep_share(rate)
    contexts = attend(tensors, allowed, positions, dropout=rate, recompute=recompute)[0]
    expected = attend_slowly(tensors, allowed, positions, 5.0, kept)
    torch.testing.assert_close(contexts, expected, rtol=1e-10, atol=1e-12)
    for found, wanted in zip(differentiate(contexts, tensors), differentiate(expected, tensors), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_recomputed_and_kept_probabilities_give_the_same_bits():
    positions = Positions(16, 40)
    tensors, allowed = make_inputs(70, positions, dtype=torch.float32)
    sides = [
        attend(tensors, allowed, positions, dropout=0.1, recompute=recompute) for recompute in (False, True)
    ]
    assert [side[1].numel() for side in sides] == [HEADS * ROWS * 70 * 70, 0]
    assert torch.equal(sides[0][0], sides[1][0])
    for kept, recomputed in zip(*(differentiate(side[0], tensors) for side in sides), strict=True):
        assert torch.equal(kept, recomputed)


def test_a_seed_decides_the_dropout_and_nothing_else_does():
    positions = Positions(16, 40)
    tensors, allowed = make_inputs(70, positions, dtype=torch.float32)
    first = attend(tensors, allowed, positions, dropout=0.1, seed=5)[0]
    torch.rand(3)
    np.random.default_rng().random(3)
    second = attend(tensors, allowed, positions, dropout=0.1, seed=5)[0]
    assert torch.equal(first, second)
    for one, two in zip(differentiate(first, tensors), differentiate(second, tensors), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first, attend(tensors, allowed, positions, dropout=0.1, seed=6)[0])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_meets_its_rate_and_its_mean_is_the_attention_without(rate):
    signs = draw_dropout(torch.Size([200, 1001]), rate, np.random.SFC64(1))
    share = (signs < 0).double().mean().item()
    assert share == pytest.approx(rate, abs=4 * (rate * (1 - rate) / signs.numel()) ** 0.5 + 1 / 65536)
    # Neighbours along a row and along a column are dropped independently.
    dropped = (signs < 0).double()
    for near, far in ((dropped[:, :-1], dropped[:, 1:]), (dropped[:-1], dropped[1:])):
        correlation = torch.corrcoef(torch.stack([near.flatten(), far.flatten()]))[0, 1].item()
        assert abs(correlation) < 0.01
    positions = Positions(16, 40)
    inputs, allowed = make_inputs(20, positions)
    tensors = [tensor.detach() for tensor in inputs]
    plain = attend(tensors, allowed, positions)[0]
    drawn = torch.stack(
        [attend(tensors, allowed, positions, dropout=rate, seed=seed)[0] for seed in range(400)]
    )
    errors = (drawn.mean(0) - plain) / (drawn.std(0) / 400**0.5 + 1e-12)
    assert errors.abs().mean() < 1.0
    assert errors.std().item() == pytest.approx(1.0, abs=0.2)


def test_heads_and_chunks_draw_different_masks(monkeypatch):
    monkeypatch.setattr(attention_blocks, "CHUNK_SCORES", 1)
    tensors, allowed = make_inputs(40, Positions(16, 40))
    dropped = attend(tensors, torch.ones_like(allowed), Positions(16, 40), dropout=0.5)[1] < 0
    masks = dropped.flatten(0, 1).flatten(1)
    assert len({tuple(mask.tolist()) for mask in masks}) == HEADS * ROWS


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kinds", [("c2p", "p2c"), ("c2p",), ()])
def test_flops_told_to_the_counter_are_the_products_that_are_done(kinds, recompute):
    positions = Positions(16, 40)
    tensors, allowed = make_inputs(150, positions, kinds=kinds)
    with FlopCounterMode(display=False) as told:
        contexts, kept = attend(tensors, allowed, positions, recompute=recompute)
        contexts.sum().backward()
    detached = [None if tensor is None else tensor.detach() for tensor in tensors]
    inputs = _read_inputs([*detached, allowed], Settings(HEADS, *positions, 5.0, 0.0, recompute))
    with FlopCounterMode(display=False) as done:
        contexts, kept = attention_blocks.attend(inputs, 0)
        attention_blocks.backpropagate(inputs, torch.ones_like(contexts), contexts, kept, 0)
    assert told.get_total_flops() == done.get_total_flops() > 0


def test_buckets_make_the_position_products_smaller_than_every_distance_would():
    def count(positions):
        tensors, allowed = make_inputs(256, positions)
        with FlopCounterMode(display=False) as counter:
            attend(tensors, allowed, positions)
        return counter.get_total_flops()

    plain = 4 * ROWS * 256 * 256 * HEADS * SIZE
    assert count(Positions(-1, 256)) - plain < 1.3 * plain
    assert count(Positions(32, 256)) - plain < 0.25 * plain


@pytest.mark.parametrize("recompute", [False, True])
def test_torch_accepts_the_operator(recompute):
    tensors, allowed = make_inputs(9, Positions(16, 40), dtype=torch.float32)
    arguments = (*tensors, allowed, torch.tensor([3]), [HEADS, 16, 40, 5.0, 0.0, recompute])
    torch.library.opcheck(disentangled_attention, arguments)
    no_tables = (*tensors[:3], None, None, None, None, [HEADS, -1, 1, 5.0, 0.0, recompute])
    torch.library.opcheck(disentangled_attention, no_tables)


def test_both_readings_of_diagonals_are_those_of_a_loop():
    wide = torch.randn(2 * 3, 5 + 3 - 1)
    view = view_diagonals(wide, 2, 3, 5)
    for row in range(2):
        for slot in range(3):
            for column in range(5):
                assert view[row, slot, column] == wide[row * 3 + slot, column - slot + 2]
    products = torch.randn(2, 3, 6, 11)
    read = read_diagonals(products)
    for slot in range(6):
        for column in range(6):
            assert torch.equal(read[..., slot, column], products[..., slot, column - slot + 5])
    assert read_diagonals(products[:, :, :1, :1]).shape == (2, 3, 1, 1)


def test_autocast_does_not_reach_into_the_operator():
    tensors, allowed = make_inputs(40, Positions(16, 40), dtype=torch.float32)
    expected = attend(tensors, allowed, Positions(16, 40))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        contexts = attend(tensors, allowed, Positions(16, 40))[0]
        gradients = differentiate(contexts, tensors)
    assert torch.equal(contexts, expected)
    for found, wanted in zip(gradients, differentiate(expected, tensors), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("wanted", "device", "capability", "head_size", "is_installed", "expected", "reason"),
    [
        ("eager", "cuda", (8, 0), 64, True, "eager", "the reference"),
        ("fast", "cuda", (8, 0), 64, True, "fast", "asked for"),
        ("auto", "cpu", None, 64, True, "fast", "the device is cpu"),
        ("auto", "cuda", (7, 5), 64, True, "fast", "capability is 7.5"),
        ("auto", "cuda", (8, 0), 64, False, "fast", "pip install disentangled-flash==1.1.1"),
        ("auto", "cuda", (8, 6), 48, True, "fast", "heads have size 48"),
        ("auto", "cuda", (9, 0), 64, True, "flash", "runs on this GPU"),
        ("flash", "cuda", (8, 0), None, True, "flash", "runs on this GPU"),
    ],
)
def test_the_kernel_follows_the_hardware_and_says_why(
    wanted, device, capability, head_size, is_installed, expected, reason, monkeypatch
):
    spec = object() if is_installed else None
    monkeypatch.setattr(attention_flash.importlib.util, "find_spec", lambda name: spec)
    name, said = choose_kernel(wanted, device, capability, head_size=head_size)
    assert name == expected
    assert reason in said


@pytest.mark.parametrize(
    ("wanted", "device", "capability", "error", "message"),
    [
        ("sdpa", "cpu", None, ValueError, "'sdpa' is unknown: give auto, eager, fast, flash"),
        ("flash", "cpu", None, ValueError, "the device is cpu; give auto or fast"),
        ("flash", "cuda", (7, 5), ValueError, r"capability is 7\.5"),
        ("flash", "cuda", (8, 0), ModuleNotFoundError, r"pip install disentangled-flash==1\.1\.1"),
    ],
)
def test_kernels_that_cannot_run_are_refused(wanted, device, capability, error, message, monkeypatch):
    monkeypatch.setattr(attention_flash.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(error, match=message):
        choose_kernel(wanted, device, capability)
