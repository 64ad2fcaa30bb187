import json
import math

import pytest

from launch.sweeping.axes import read_space
from launch.sweeping.search import check_space, describe_space, list_corners, name_trial
from launch.verdict import RunError

TEXTS = [
    "training.learning_rate=1e-4..1e-2:log",
    "training.warmup_steps=1..50",
    "training.betas=[[0.9, 0.98], [0.9, 0.999]]",
]
SPACE = read_space(TEXTS, is_search=True)


def test_the_ends_of_all_ranges_are_planned_with_every_listed_value():
    corners = list(list_corners(SPACE))
    assert len(corners) == 4
    assert [tuple(corner) for corner in corners] == [SPACE.keys] * 4
    ends = {(corner["training.learning_rate"], corner["training.warmup_steps"]) for corner in corners}
    assert ends == {(1e-4, 1), (1e-2, 50)}
    listed = read_space(TEXTS[2:], is_search=True)
    assert list(list_corners(listed)) == [{"training.betas": value} for value in listed.axes[0].values]


def test_another_space_than_the_study_began_with_is_refused():
    then = json.loads(json.dumps(describe_space(SPACE, ["a=1"])))
    check_space(then, SPACE, ["a=1"])
    for space, fixed in ((read_space(TEXTS[:2], is_search=True), ["a=1"]), (SPACE, ["a=2"])):
        with pytest.raises(RunError, match="another --output"):
            check_space(then, space, fixed)


def test_a_trials_name_has_its_number_and_short_values():
    values = {"training.learning_rate": 0.0029106359131330704, "training.seed": 3}
    assert name_trial(7, values) == "007-learning_rate=0.002911,seed=3"


def test_draws_are_seeded_stay_within_bounds_and_go_on_in_a_new_process(tmp_path):
    pytest.importorskip("optuna")
    from launch.sweeping.search import Search

    def begin(folder, seed=3):
        folder.mkdir(exist_ok=True)
        return Search(SPACE, folder, higher_is_better=False, seed=seed, num_slots=1)

    def draw(search, count):
        found = []
        for _ in range(count):
            number, values = search.draw()
            found.append(values)
            search.tell(number, abs(math.log10(values["training.learning_rate"]) + 3))
        return found

    straight = draw(begin(tmp_path / "a"), 4)
    assert draw(begin(tmp_path / "b"), 4) == straight != draw(begin(tmp_path / "c", seed=4), 4)
    for values in straight:
        assert list(values) == ["training.betas", "training.learning_rate", "training.warmup_steps"]
        assert 1e-4 <= values["training.learning_rate"] <= 1e-2
        assert isinstance(values["training.warmup_steps"], int)
        assert values["training.betas"] in SPACE.axes[0].values
    # Started again it knows its trials, and does not draw the first values once more.
    again = begin(tmp_path / "a")
    number, values = again.draw()
    assert number == 4
    assert values not in straight
    again.drop_unknown({number})
    again.tell(number, 1.0)
    # The same values as a new trial; and one that nobody knows is closed.
    number = again.draw_again(straight[0])
    assert number == 5
    again.drop_unknown(set())
    trials = again._study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5 + ["FAIL"]
    assert trials[5].params == trials[0].params


def test_a_search_comes_nearer_to_what_is_better(tmp_path):
    pytest.importorskip("optuna")
    from launch.sweeping.search import Search

    space = read_space(["training.learning_rate=1e-6..1:log"], is_search=True)
    for higher in (False, True):
        folder = tmp_path / str(higher)
        folder.mkdir()
        search = Search(space, folder, higher_is_better=higher, seed=0, num_slots=1)
        distances = []
        for _ in range(40):
            number, values = search.draw()
            distances.append(abs(math.log10(values["training.learning_rate"]) + 3))
            search.tell(number, -distances[-1] if higher else distances[-1])
        # 1.5 by chance alone, and more than 2 where the wrong end is sought.
        assert sum(distances[-20:]) / 20 < 1
