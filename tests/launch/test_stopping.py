"""Stopping conditions and the best model against a plain simulation, and the names that may be given."""

import json
import math
from dataclasses import asdict, fields
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.evaluate import Score
from launch.progress import Patience, Progress
from launch.recipe_file import read_recipe
from launch.recipe_stopping import Condition, find_best_rule, find_direction, list_figures
from launch.stopping import judge_figures
from launch.verdict import RunError

CANINE, DEBERTA = "canine-tiny-domains-char", "deberta-tiny-encyclopedia-wwm"
RTD = "deberta-tiny-encyclopedia-rtd"
VALUES = st.one_of(
    st.floats(-4, 4).map(lambda value: round(value, 1)), st.sampled_from([None, math.nan, math.inf])
)
CONDITIONS = st.builds(
    Condition,
    metric=st.sampled_from("abc"),
    direction=st.sampled_from(["lower", "higher"]),
    patience=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.25, 1.0]),
    is_relative=st.booleans(),
)
RULES = st.lists(CONDITIONS, min_size=0, max_size=3, unique_by=lambda condition: condition.metric)


def simulate(history, condition):
    """The evaluation at which a condition ends the run, reckoned from the whole history; None: never."""
    sign = 1 if condition.direction == "higher" else -1
    for end in range(1, len(history) + 1):
        best, last = None, 0
        for number, value in enumerate(history[:end], start=1):
            if value is None or not math.isfinite(value):
                continue
            margin = condition.threshold * (abs(best or 0) if condition.is_relative else 1)
            if best is None or sign * value > sign * best + margin:
                best, last = value, number
        if end - last >= condition.patience:
            return end
    return None


@given(RULES, st.lists(st.fixed_dictionaries({name: VALUES for name in "abc"}), max_size=15))
def test_a_run_ends_where_a_simulation_of_its_conditions_says_also_over_checkpoints(rules, history):
    ends = [simulate([values[rule.metric] for values in history], rule) for rule in rules]
    wanted = min((end for end in ends if end is not None), default=None)
    best, progress, ended = Condition("a", "lower"), Progress(), None
    for number, values in enumerate(history, start=1):
        progress = progress.after(number).judged(values, best, rules)
        # A checkpoint between any two evaluations changes nothing.
        kept = json.loads(json.dumps(asdict(progress)))
        again = Progress.read(kept, "a")
        assert asdict(again) == asdict(progress) | {"resumed_from": number}
        progress = again
        spent = progress.find_stale(rules)
        assert (spent is not None) == (number in ends)
        if spent is not None:
            assert ends[rules.index(spent)] == number
            ended = number
            break
    assert ended == wanted
    seen = [values["a"] for values in history[: ended or len(history)]]
    finite = [value for value in seen if value is not None and math.isfinite(value)]
    assert progress.best_value == (min(finite) if finite else None)
    assert progress.best_step == (seen.index(min(finite)) + 1 if finite else None)


def test_a_checkpoint_with_one_condition_in_flat_fields_is_read():
    state = {
        "step": 40, "best_step": 30, "best_value": 2.5, "num_stale": 2, "best_reported": 2.6,
        "resumed_from": 10, "num_skipped": 1, "is_evaluation_due": False,
    }  # fmt: skip
    progress = Progress.read(state, "accuracy")
    assert progress == Progress(
        step=40, best_step=30, best_value=2.5, patience={"accuracy": Patience(2.6, 2)},
        resumed_from=40, num_skipped=1,
    )  # fmt: skip
    assert progress.num_skipped_in_a_row == progress.num_steps_left_out == 0


def test_progress_comes_back_from_a_checkpoint_as_it_was():
    progress = Progress(
        step=7, best_step=5, best_value=0.1 + 0.2, patience={"loss": Patience(1 / 3, 4), "a": Patience()},
        missing=("a",), resumed_from=7, num_skipped=3, num_skipped_in_a_row=2, is_evaluation_due=True,
        num_steps_left_out=11, num_rewinds=2, rewound_to=4, losses=(1.1, 2.0 / 3), num_spikes_in_a_row=1,
    )  # fmt: skip
    assert all(getattr(progress, field.name) != field.default for field in fields(Progress))
    assert Progress.read(json.loads(json.dumps(asdict(progress))), "loss") == progress


def test_the_direction_of_a_figure_is_told_by_its_name():
    lower = ["loss", "perplexity", "eval/main/rare_words/unseen/word_perplexity", "discriminator_loss"]
    lower += ["eval/main/terms/term_perplexity", "eval/main/terms/perplexity_high"]
    higher = ["accuracy", "discriminator_auc", "eval/main/accuracy_top5", "eval/main/probes/a/macro_f1"]
    higher += ["eval/main/recovery/2/exact"]
    assert {find_direction(name) for name in lower} == {"lower"}
    assert {find_direction(name) for name in higher} == {"higher"}
    assert find_direction("eval/main/num_targets") is None
    assert find_direction("eval/main/closs") is None


def read(name, *overrides):
    return read_recipe(name, overrides)


def refuse(name, *overrides):
    with pytest.raises(ValueError, match="problem") as caught:
        read(name, *overrides)
    return str(caught.value)


NAMES = "evaluation.metrics={names: {}, pseudo: {}}"


def test_one_condition_or_several_are_read_with_what_they_leave_open():
    assert read(CANINE, "stopping=null").conditions == ()
    one = read(CANINE, "stopping={metric: accuracy, patience: 2, threshold: 0.1, relative: true}")
    assert one.conditions == (Condition("accuracy", "higher", 2, 0.1, True),)
    assert one.best == Condition("accuracy", "higher")
    two = read(CANINE, NAMES, "stopping=[{}, {metric: eval/main/names/suffix/com/perplexity}]")
    assert [condition.metric for condition in two.conditions] == [
        "loss",
        "eval/main/names/suffix/com/perplexity",
    ]
    assert two.best == Condition("loss", "lower")
    assert read(CANINE, NAMES, "evaluation.best=eval/main/pseudo/exact").best.direction == "higher"
    assert read(RTD, "stopping={}").conditions[0].metric == "discriminator_loss"
    assert read(RTD, "stopping={metric: discriminator_auc, direction: lower}").best.direction == "lower"


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        (CANINE, ["stopping={metric: los}"], "stopping.metric: this recipe's evaluation gives no los; did"),
        (CANINE, ["stopping=[{}, {metric: los}]"], "stopping.1.metric: this recipe's evaluation gives no lo"),
        (CANINE, ["evaluation.best=acuracy"], "evaluation.best: this recipe's evaluation gives no acuracy"),
        (CANINE, ["evaluation.best=acuracy"], "did you mean accuracy?"),
        (CANINE, [NAMES, "stopping={metric: eval/main/pseudo/exact_}"], "mean eval/main/pseudo/exact?"),
        (CANINE, ["stopping={metric: eval/main/pseudo/exact}"], "for further figures evaluation.metrics is"),
        (CANINE, [NAMES, "stopping={metric: eval/main/names/suffix/com/x/perplexity}"], "gives no eval/main"),
        (CANINE, [NAMES, "evaluation.best=eval/main/names/suffix/*/perplexity"], "gives no eval/main/names"),
        (CANINE, ["evaluation.best=discriminator_auc"], "is of objective.kind: rtd"),
        (CANINE, ["stopping=[{}, {metric: loss}]"], "stopping.1.metric: loss has a condition already"),
        (CANINE, ["stopping=[]"], "wanted a mapping, or a list that is not empty"),
        (CANINE, ["stopping=[{patience: 0}]"], "stopping.0.patience: wanted a whole number at least 1"),
        (CANINE, ["stopping={metric: loss, thresh: 1}"], "did you mean threshold?"),
    ],
)  # fmt: skip
def test_a_metric_that_the_evaluation_does_not_give_is_refused_with_what_is_meant(name, overrides, words):
    assert words in refuse(name, *overrides)


def test_a_figure_whose_better_values_nobody_knows_wants_a_direction(monkeypatch):
    monkeypatch.setattr("launch.recipe_stopping._PLAIN", ("loss", "oddness"))
    assert "stopping.direction: say whether lower or higher" in refuse(CANINE, "stopping={metric: oddness}")
    assert "evaluation.best: whether lower or higher" in refuse(CANINE, "evaluation.best=oddness")
    told = read(CANINE, "stopping={metric: oddness, direction: higher}", "evaluation.best=oddness")
    assert told.best == Condition("oddness", "higher")


def test_a_recipe_as_plain_data_names_the_same_best():
    for name, overrides in [
        (CANINE, []), (RTD, []), (CANINE, ["stopping={metric: accuracy}"]),
        (CANINE, ["stopping=[{metric: perplexity}, {}]"]), (CANINE, ["evaluation.best=accuracy"]),
        (RTD, ["stopping={metric: discriminator_auc, direction: lower}"]),
    ]:  # fmt: skip
        recipe = read(name, *overrides)
        assert find_best_rule(recipe.model_dump(mode="json")) == recipe.best
    for broken in (
        {},
        {"stopping": [3, None], "evaluation": [], "objective": 1},
        {"stopping": {"metric": 3}},
    ):
        assert isinstance(find_best_rule(broken), Condition)


class Told:
    def __init__(self):
        self.events: list[tuple[str, int, dict]] = []

    def log(self, kind, step, **values):
        self.events.append((kind, step, values))


def judge(told, progress, figures, *overrides):
    job: Any = SimpleNamespace(recipe=read(CANINE, NAMES, *overrides))
    return judge_figures(job, told, progress, figures)


def test_a_figure_that_is_missing_or_no_number_is_no_improvement_and_is_said_once():
    told: Any = Told()
    overrides = ("stopping=[{patience: 9}, {metric: eval/main/pseudo/exact, patience: 9}]",)
    progress = Progress(step=5)
    for figures in ({"loss": math.nan}, {"loss": math.nan}, {"loss": 1.0, "eval/main/pseudo/exact": 0.5}):
        progress = judge(told, progress, figures, *overrides)
    assert [(kind, values["metric"]) for kind, _, values in told.events] == [
        ("missing", "loss"),
        ("missing", "eval/main/pseudo/exact"),
    ]
    assert "is not a number" in told.events[0][2]["message"]
    assert "is not there" in told.events[1][2]["message"]
    assert (progress.best_value, progress.best_step) == (1.0, 5)
    assert {state.num_stale for state in progress.patience.values()} == {0}


def test_a_figure_that_the_first_evaluation_lacks_ends_the_run_before_it_trains():
    metric = "eval/main/names/suffix/cmo/perplexity"
    figures = {"loss": 1.0, "eval/main/names/suffix/com/perplexity": 3.0}
    with pytest.raises(RunError, match=r"did you mean eval/main/names/suffix/com/perplexity\?") as caught:
        judge(Told(), Progress(), figures, f"stopping={{metric: {metric}}}")
    assert caught.value.verdict.exit_code == 2


def test_the_plain_figures_are_those_of_a_score():
    figures = Score.of(1.0, 1.0, 2.0).as_dict()
    recipe = read(CANINE)
    assert set(list_figures(recipe.evaluation, recipe.data, False)) == set(figures) - {"num_targets"}
