import pytest
from pydantic import TypeAdapter, ValidationError

from launch.recipe_metrics import Metrics, MetricsChoice, check_metrics

FULL = {
    "terms": {"lists": {"taxa": "taxa.txt"}},
    "rare_words": {},
    "fragmentation": True,
    "names": {},
    "pseudo": {},
    "general": {"sources": [{"kind": "text", "path": "general.txt"}]},
    "probes": [{"name": "topics", "path": "topics.jsonl"}],
}


def read(value):
    return TypeAdapter(MetricsChoice).validate_python(value)


def test_a_list_is_what_it_was_and_a_mapping_is_settings():
    assert read(["loss", "accuracy"]) == ["loss", "accuracy"]
    found = read(FULL)
    assert isinstance(found, Metrics)
    assert found.rare_words.bounds == [1, 10, 100, 1000]
    assert read({}) == Metrics()
    assert read(found) is found


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (["loss", "bleu"], "'loss', 'perplexity' or 'accuracy'"),
        ({"term": {}}, "Extra inputs"),
        ({"terms": {"lists": {}}}, "at least 1"),
        ({"terms": {"lists": {"Two Words": "a"}}}, "pattern"),
        ({"rare_words": {"bounds": [10, 1]}}, "counts that ascend"),
        ({"rare_words": {"bounds": []}}, "counts that ascend"),
        ({"probes": FULL["probes"] * 2}, "one name"),
    ],
)
def test_what_cannot_be_meant_is_refused(value, wanted):
    with pytest.raises(ValidationError, match=wanted):
        read(value)


def test_metrics_that_the_family_cannot_have_are_said_all_at_once():
    found = check_metrics(read(FULL), "canine", is_streaming=True)
    assert [key for key, _ in found] == [
        "evaluation.metrics.terms",
        "evaluation.metrics.rare_words",
        "evaluation.metrics.fragmentation",
        "evaluation.metrics.rare_words",
    ]
    assert [key for key, _ in check_metrics(read(FULL), "deberta", is_streaming=False)] == [
        "evaluation.metrics.names"
    ]
    assert check_metrics(["loss"], "canine", is_streaming=True) == []
    assert check_metrics(read({"pseudo": {}, "names": {}}), "canine", is_streaming=True) == []
