"""The universal form of a training state, against shards that are cut by hand as ZeRO cuts them."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from launch.checkpoints.origin import Origin, describe_world
from launch.checkpoints.resume import _describe
from launch.checkpoints.shards import ShardedState, read_shards
from launch.checkpoints.universal import (
    KEYS,
    LossScale,
    PlainState,
    UniversalError,
    fill_optimizer,
    find_misfit,
    list_trained,
    name_parameters,
)

shapes = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=2), min_size=1, max_size=5)
groups = st.lists(shapes, min_size=1, max_size=3)


def make_truth(of_groups, seed):
    """Whole tensors by name and key: what was there before it was cut."""
    torch.manual_seed(seed)
    names = [[f"layer{g}.{number}" for number in range(len(of))] for g, of in enumerate(of_groups)]
    return [
        {
            name: {key: torch.randn(tuple(shape)) for key in ("fp32", *KEYS)}
            for name, shape in zip(of_names, of, strict=True)
        }
        for of_names, of in zip(names, of_groups, strict=True)
    ]


def state_of(flats, step):
    keyed = {
        g: {"step": torch.tensor(step), **{key: flat[key] for key in KEYS}} for g, flat in enumerate(flats)
    }
    return {"state": keyed, "param_groups": [{"params": [g]} for g in range(len(flats))]}


def cut_lists(truth, num_ranks, step, alignment=2):
    """ZeRO-1 and 2: number after number is dealt to the ranks; masters are without the padding at the end."""
    shards = [
        {"param_slice_mappings": [], "single_partition_of_fp32_groups": [], "flats": []}
        for _ in range(num_ranks)
    ]
    for members in truth:
        owners = [name for name, values in members.items() for _ in range(values["fp32"].numel())]
        padded = len(owners) + -len(owners) % (num_ranks * alignment)
        size = padded // num_ranks
        numbers = {
            key: torch.cat(
                [v[key].flatten() for v in members.values()] + [torch.full((padded - len(owners),), 9.0)]
            )
            for key in ("fp32", *KEYS)
        }
        for rank, shard in enumerate(shards):
            mine = owners[rank * size : (rank + 1) * size]
            addresses = {
                n: SimpleNamespace(start=mine.index(n), numel=mine.count(n)) for n in dict.fromkeys(mine)
            }
            shard["param_slice_mappings"].append(addresses)
            own = {key: flat[rank * size : (rank + 1) * size] for key, flat in numbers.items()}
            shard["single_partition_of_fp32_groups"].append(own["fp32"][: len(mine)])
            shard["flats"].append(own)
    return [{**shard, "base_optimizer_state": state_of(shard.pop("flats"), step)} for shard in shards]


def cut_parameters(truth, num_ranks, step):
    """ZeRO-3: every parameter is dealt to the ranks in equal parts, the last ones padded."""
    shards = []
    for rank in range(num_ranks):
        flats = []
        for members in truth:
            flat = {}
            for key in ("fp32", *KEYS):
                parts = []
                for values in members.values():
                    numbers = values[key].flatten().tolist()
                    numbers += [9.0] * (-len(numbers) % num_ranks)
                    size = len(numbers) // num_ranks
                    parts += numbers[rank * size : (rank + 1) * size]
                flat[key] = torch.tensor(parts)
            flats.append(flat)
        shards.append(
            {"fp32_flat_groups": [f["fp32"] for f in flats], "optimizer_state_dict": state_of(flats, step)}
        )
    return shards


@settings(max_examples=60, deadline=None)
@given(groups, st.integers(1, 5), st.sampled_from([cut_lists, cut_parameters]), st.integers(0, 99))
def test_parameters_are_put_together_from_the_parts_of_all_ranks(of_groups, num_ranks, cut, seed):
    truth = make_truth(of_groups, seed)
    listed = [{name: list(v["fp32"].shape) for name, v in members.items()} for members in truth]
    state = ShardedState(cut(truth, num_ranks, step=7.0), listed)
    assert state.loss_scale is None
    for members in truth:
        for name, values in members.items():
            part = state.read(name)
            assert torch.equal(part.weight, values["fp32"])
            assert all(torch.equal(part.moments[key], values[key]) for key in KEYS)
            assert part.step == 7.0


def cut_one(num_ranks=2, cut=cut_lists):
    truth = make_truth([[(3, 5), (4,)], [(2,)]], 0)
    listed = [{name: list(v["fp32"].shape) for name, v in members.items()} for members in truth]
    return cut(truth, num_ranks, 3.0), listed


def test_a_part_that_is_missing_or_updated_otherwise_is_refused():
    shards, listed = cut_one()
    with pytest.raises(UniversalError, match=r"hold 12 of 15 numbers of layer0.0"):
        ShardedState(_without(shards, "layer0.0", 3), listed)
    shards, listed = cut_one()
    shards[1]["base_optimizer_state"]["state"][0]["step"] = torch.tensor(4.0)
    with pytest.raises(UniversalError, match=r"updated layer0.0 \[3.0, 4.0\] times"):
        ShardedState(shards, listed).read("layer0.0")
    shards, listed = cut_one(cut=cut_parameters)
    shards[1]["fp32_flat_groups"][0] = torch.empty(0)
    with pytest.raises(UniversalError, match="shorter than its parameters"):
        ShardedState(shards, listed)
    shards, listed = cut_one()
    shards[0]["base_optimizer_state"] = [{}]
    with pytest.raises(UniversalError, match="elastic_checkpoint"):
        ShardedState(shards, listed)


def _without(shards, name, num):
    """The shards with so many numbers fewer in the last part of a parameter."""
    holder = [shard for shard in shards if name in shard["param_slice_mappings"][0]][-1]
    holder["param_slice_mappings"][0][name].numel -= num
    return shards


def test_shards_that_were_never_updated_have_no_moments():
    shards, listed = cut_one(cut=cut_parameters)
    for shard in shards:
        shard["optimizer_state_dict"]["state"] = {}
    part = ShardedState(shards, listed).read("layer1.0")
    assert (dict(part.moments), part.step, part.weight.shape) == ({}, 0.0, (2,))


def test_the_loss_scale_is_taken_over_with_the_steps_since_it_changed():
    shards, listed = cut_one()
    scaler = SimpleNamespace(cur_scale=1024.0, cur_iter=50, last_overflow_iter=19)
    shards[0] |= {"loss_scaler": scaler, "dynamic_loss_scale": True}
    assert ShardedState(shards, listed).loss_scale == LossScale(1024.0, 30)
    shards[0]["dynamic_loss_scale"] = False
    assert ShardedState(shards, listed).loss_scale is None


def test_a_shard_of_each_process_has_to_be_there(tmp_path):
    for rank in (0, 2):
        (tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    (tmp_path / "mp_rank_00_model_states.pt").touch()
    for num_ranks in (2, 3):
        with pytest.raises(UniversalError, match=f"2 shards of an optimizer are there, {num_ranks} were"):
            read_shards(tmp_path, num_ranks)


class Tied(nn.Module):
    """A tied weight, two groups of decay, a frozen parameter and two of the same shape."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.embedding = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7)
        self.head.weight = self.embedding.weight
        self.idle = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, ids):
        return self.head(torch.tanh(self.second(self.first(self.embedding(ids))))).square().mean()


def build(seed, order):
    """A model and AdamW over it, its parameters numbered as `order` sorts them."""
    model = Tied(seed)
    trained = sorted(((n, p) for n, p in model.named_parameters() if p.requires_grad), key=order)
    halves = [{"params": [p for _, p in half]} for half in (trained[:3], trained[3:])]
    return model, torch.optim.AdamW(halves, lr=0.1)


def train(model, optimizer, num_steps):
    for step in range(num_steps):
        model(torch.arange(step, step + 4) % 7).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_plain_state_goes_by_name_into_an_optimizer_of_another_order():
    old, old_optimizer = build(1, order=lambda item: item[0])
    train(old, old_optimizer, 3)
    saved = {"optimizer": old_optimizer.state_dict(), "names": name_parameters(old_optimizer, old)}
    weights = {name: value.clone() for name, value in old.state_dict().items() if name != "embedding.weight"}
    new, new_optimizer = build(2, order=lambda item: [-ord(c) for c in item[0]])
    assert name_parameters(new_optimizer, new) != saved["names"]
    state = PlainState(weights, saved, new)
    assert find_misfit(state, new) is None
    fill_optimizer(new_optimizer, new, state)
    train(old, old_optimizer, 3)
    train(new, new_optimizer, 3)
    assert all(torch.equal(new.state_dict()[name], value) for name, value in old.state_dict().items())


def test_an_older_plain_state_is_numbered_as_our_optimizer_numbers():
    from launch import optim
    from launch.recipe_file import read_recipe
    from modeling import hf

    model = Tied(1)
    optimizer = optim.build_optimizer(model, read_recipe("canine-tiny-domains-char").training, hf.decays)
    assert name_parameters(optimizer, model) == list_trained(model)
    train(model, optimizer, 2)
    state = PlainState(model.state_dict(), {"optimizer": optimizer.state_dict()}, model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(state.read(name).moments["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_a_state_of_another_model_is_refused():
    model, optimizer = build(1, order=lambda item: item[0])
    saved = {"optimizer": optimizer.state_dict(), "names": name_parameters(optimizer, model)}
    with pytest.raises(UniversalError, match="no weight embedding.weight"):
        PlainState({}, saved, model)
    with pytest.raises(UniversalError, match="has 6 parameters, the model 5"):
        PlainState(model.state_dict(), {**saved, "names": saved["names"][1:]}, model)
    state = PlainState(model.state_dict(), saved, model)
    other = Tied(1)
    other.second = nn.Linear(5, 6)
    assert "second.weight has the shape (5, 5), not (6, 5)" in (find_misfit(state, other) or "")
    del other.second
    assert "unknown ['second.bias', 'second.weight']" in (find_misfit(state, other) or "")


def test_a_moment_of_another_shape_than_its_weight_is_refused():
    model, optimizer = build(1, order=lambda item: item[0])
    train(model, optimizer, 1)
    saved = {"optimizer": optimizer.state_dict(), "names": name_parameters(optimizer, model)}
    saved["names"][0], saved["names"][-1] = saved["names"][-1], saved["names"][0]
    with pytest.raises(UniversalError, match="another shape than its weight"):
        PlainState(model.state_dict(), saved, model)


PLAN = {"world_size": 2, "sharding": "zero2", "zero_stage": 2}


@pytest.mark.parametrize(
    ("origin", "plan", "is_kept", "differs"),
    [
        (Origin(2, "zero2", 2, True), PLAN, True, False),
        (Origin(2, None, None, True), PLAN, True, False),
        (Origin(1, "zero2", 2, True), PLAN, False, True),
        (Origin(2, "zero3", 3, True), PLAN, False, True),
        (Origin(2, "zero2-offload", 2, True), PLAN, False, True),
        (Origin(2, "none", None, False), PLAN, False, True),
        (Origin(2, "zero2", 2, True), {"world_size": 2, "sharding": "none", "zero_stage": None}, False, True),
        (
            Origin(1, "none", None, False),
            {"world_size": 2, "sharding": "none", "zero_stage": None},
            True,
            True,
        ),
        (
            Origin(2, None, None, False),
            {"world_size": 2, "sharding": "none", "zero_stage": None},
            True,
            False,
        ),
    ],
)
def test_what_fits_as_it_is_and_what_is_another_world(origin, plan, is_kept, differs):
    plan = SimpleNamespace(**plan)
    assert (origin.is_kept_by(plan), origin.differs(plan)) == (is_kept, differs)


def test_worlds_in_words():
    assert str(Origin(2, "zero2", 2, True)) == "2 processes under zero2"
    assert str(Origin(2, None, 3, True)) == "2 processes under ZeRO-3"
    assert str(Origin(1, "none", None, False)) == describe_world(1, "none") == "1 process"


@pytest.mark.parametrize(
    ("origin", "dropout", "text"),
    [
        (Origin(2, "zero2", 2, True), 0.0, "written by 2 processes under zero2, on 1 process"),
        (
            Origin(2, "none", None, False),
            0.1,
            "written by 2 processes, on 1 process; what dropout drops is drawn anew",
        ),
        (Origin(1, "zero2", 2, True), 0.1, "written by 1 process under zero2, on 1 process"),
        (Origin(1, "none", None, False), 0.1, None),
    ],
)
def test_a_change_of_world_is_said_and_that_dropout_then_draws_anew(origin, dropout, text):
    plan = SimpleNamespace(world_size=1, sharding="none", zero_stage=None)
    recipe = SimpleNamespace(model=SimpleNamespace(dropout=dropout))
    assert _describe(SimpleNamespace(plan=plan, recipe=recipe), origin) == text  # pyright: ignore[reportArgumentType]
