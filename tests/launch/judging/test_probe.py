import json

import numpy as np
import pytest
import torch

from launch.judging import probe as probe_module
from launch.judging.counts import ClassMetric
from launch.judging.probe import Examples, Moments, classify, encode_rows, read_examples
from launch.recipe_metrics import Probe
from launch.verdict import RunError
from tests.launch.judging.small import make_model, make_rows, make_runner, make_tokenizer, run_ranks


def make_examples(labels, num_train):
    numbers = np.arange(len(labels))
    is_train = numbers < num_train
    return Examples(tuple(map(str, numbers)), labels, is_train, ("a", "b", "c"))


def make_features(labels, distance, seed=0, size=24):
    generator = np.random.default_rng(seed)
    centres = generator.normal(0, 1, (3, size)) * distance
    features = centres[labels] + generator.normal(0, 1, (len(labels), size)) @ generator.normal(
        0, 0.4, (size, size)
    )
    return np.rint(features * 4096) / 4096


def run(features, examples, world_size=1):
    """As ranks would: each has every n-th example."""

    def run_rank(rank, add):
        ids, metric = np.arange(len(examples.labels))[rank::world_size], ClassMetric(3, 0)
        classify(features[ids], ids, examples, metric, add)
        return metric.state["confusion"]

    joined = ClassMetric(3, 0)
    joined.state = {"confusion": sum(run_ranks(world_size, run_rank))}
    return joined.compute()


def test_the_probe_beats_the_majority_where_classes_can_be_told():
    labels = np.random.default_rng(0).choice(3, 900, p=[0.6, 0.3, 0.1])
    found = run(make_features(labels, 1.0), make_examples(labels, 600))
    assert found["accuracy"] > 0.95 > 0.65 > found["majority_accuracy"]
    assert found["macro_f1"] > 0.9 > found["majority_macro_f1"]
    assert found["num_examples"] == 300


@pytest.mark.parametrize("seed", range(3))
def test_the_probe_does_not_beat_the_majority_on_shuffled_labels(seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, 900, p=[0.6, 0.3, 0.1])
    found = run(make_features(labels, 1.0), make_examples(generator.permutation(labels), 600))
    assert found["accuracy"] <= found["majority_accuracy"] + 0.02


def test_ranks_find_the_same_classifier():
    labels = np.random.default_rng(0).choice(3, 900, p=[0.5, 0.3, 0.2])
    features, examples = make_features(labels, 0.25), make_examples(labels, 600)
    one = run(features, examples)
    assert 0.6 < one["accuracy"] < 0.98
    assert run(features, examples, 2) == run(features, examples, 3) == one


def test_the_classifier_is_the_rule_of_bayes_for_normal_classes():
    labels = np.random.default_rng(0).choice(3, 400, p=[0.6, 0.3, 0.1])
    features = make_features(labels, 0.5, size=5)
    weights, offsets = Moments.of(features, labels, 3).fit(1e-12)
    means = np.array([features[labels == number].mean(0) for number in range(3)])
    residuals = features - means[labels]
    inverse = np.linalg.inv(residuals.T @ residuals / len(labels))
    for point in features[:20]:
        scores = [
            np.log((labels == number).mean()) - 0.5 * (point - mean) @ inverse @ (point - mean)
            for number, mean in enumerate(means)
        ]
        ours = point @ weights + offsets
        np.testing.assert_allclose(ours - ours[0], np.array(scores) - scores[0], atol=1e-6)


def test_the_shrinkage_is_chosen_where_features_are_many(monkeypatch):
    generator = np.random.default_rng(0)
    labels, centres = generator.choice(3, 600), generator.normal(0, 0.4, (3, 90))
    features, examples = centres[labels] + generator.normal(0, 1, (600, 90)), make_examples(labels, 120)
    chosen = run(features, examples)["accuracy"]
    monkeypatch.setattr(probe_module, "_SHRINKAGES", (1e-3,))
    assert chosen > run(features, examples)["accuracy"] + 0.1


def test_a_class_without_examples_is_never_answered():
    labels = np.array([0, 1, 0, 1])
    weights, offsets = Moments.of(np.eye(4), labels, 3).fit(1.0)
    assert offsets[2] == -np.inf
    assert np.isfinite(weights).all()


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_features_are_means_of_the_last_states(micro_batch):
    tokenizer = make_tokenizer()
    rows = make_rows(tokenizer, [["They say."], ["The Burgess Shale."], ["trilobites"]])
    model = make_model(tokenizer)
    ids, features = encode_rows(model, rows, make_runner(tokenizer, micro_batch))
    for number, feature in zip(ids.tolist(), features, strict=True):
        pieces = torch.tensor(rows.pieces[rows.offsets[number] : rows.offsets[number + 1]].astype(np.int64))
        with torch.no_grad():
            states = model(input_ids=pieces[None], output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(feature, states.mean(0).numpy(), atol=2**-12)
    assert sorted(ids.tolist()) == [0, 1, 2]


def test_a_rank_without_rows_has_no_features():
    tokenizer = make_tokenizer()
    rows = make_rows(tokenizer, [["They say."]])
    ids, features = encode_rows(make_model(tokenizer), rows, make_runner(tokenizer, 2, rank=1, world_size=2))
    assert ids.shape == (0,)
    assert features.shape == (0, 16)


def write(path, records):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        path.write_text("\n".join([mark.join(records[0]), *(mark.join(r.values()) for r in records)]) + "\n")
    return path


def make_settings(path, **settings):
    return Probe.model_validate({"name": "p", "path": str(path), **settings})


RECORDS = [
    {"text": f"text {n}", "label": "ab"[n % 2], "part": "train" if n % 4 else "dev"} for n in range(80)
]


@pytest.mark.parametrize("ending", ["jsonl", "tsv", "csv"])
def test_examples_are_read_and_split_as_the_file_says(ending, tmp_path):
    path = write(tmp_path / f"labelled.{ending}", RECORDS)
    found = read_examples(make_settings(path, split_key="part", num_examples=50), seed=0)
    assert found.classes == ("a", "b")
    assert found.is_train.sum() == 50
    part_of = {record["text"]: (record["label"], record["part"]) for record in RECORDS}
    for text, label, is_train in zip(found.texts, found.labels, found.is_train, strict=True):
        assert part_of[text] == (found.classes[label], "train" if is_train else "dev")


def test_without_a_split_one_text_is_on_one_side_and_a_seed_decides(tmp_path):
    path = write(tmp_path / "labelled.jsonl", [*RECORDS, *RECORDS])
    found = read_examples(make_settings(path), seed=0)
    assert len(found.texts) == len(set(found.texts)) == 80, "a text that stands there twice counts once"
    assert 5 < (~found.is_train).sum() < 30
    other = read_examples(make_settings(path), seed=1)
    assert set(found.texts[: found.is_train.sum()]) != set(other.texts[: other.is_train.sum()])


@pytest.mark.parametrize(
    ("records", "wanted"),
    [
        ([{"text": "a", "part": "train"}], "without the field 'label'"),
        ([{"text": str(n), "label": "one", "part": "train"} for n in range(20)], "1 classes"),
        ([{**record, "part": "train"} for record in RECORDS], "0 records to test on"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(records, wanted, tmp_path):
    path = write(tmp_path / "labelled.jsonl", records)
    with pytest.raises(RunError, match=wanted) as error:
        read_examples(make_settings(path, split_key="part"), seed=0)
    assert error.value.verdict.exit_code == 2


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('["text", "label"]', r'line 3 is \["text", "label"\]; wanted a JSON object'),
        ("7", "line 3 is 7; wanted a JSON object"),
        ('{"text": "a"', "line 3 is no JSON"),
        ("[" * 100_000, "line 3 is no JSON"),
    ],
)
def test_a_line_that_is_no_object_is_named(line, wanted, tmp_path):
    path = tmp_path / "labelled.jsonl"
    path.write_text(f"{json.dumps(RECORDS[0])}\n\n{line}\n")
    with pytest.raises(RunError, match=f"labelled.jsonl cannot be read: {wanted}") as error:
        read_examples(make_settings(path), seed=0)
    assert error.value.verdict.exit_code == 2


@pytest.mark.parametrize("name", ["missing.jsonl", "labelled.txt"])
def test_a_missing_or_unknown_file_is_refused(name, tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        read_examples(make_settings(tmp_path / name), seed=0)
