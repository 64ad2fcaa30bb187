"""The figures that a recipe may be stopped by are those that its suite really gives."""

import fnmatch
import json

import pytest
import torch
from torch import nn

from launch.recipe_metrics import Metrics
from launch.recipe_stopping import find_direction, list_figures
from modeling.heads import MaskedLMOutput, find_targets
from tests.launch.judging.test_suite import CANINE, DEBERTA, TERMS, Setting, write_corpus


class Blank(nn.Module):
    """A model that finds all classes alike, and has no encoder for a probe."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, input_ids, attention_mask, labels, document_ids=None):
        num_targets = len(find_targets(labels).labels)
        return MaskedLMOutput(logits=torch.zeros(num_targets, self.num_classes))


def is_listed(key, names):
    return any(key.count("/") == name.count("/") and fnmatch.fnmatchcase(key, name) for name in names)


def compare(setting, num_classes, **metrics):
    suite = setting.build(**metrics)
    found = {key for key in suite.measure(Blank(num_classes)) if "/num_" not in key}
    fixed = ("fragmentation", "majority", "unigram", "neighbours")  # training does not move them
    found = {key for key in found if not any(word in key for word in fixed)}
    evaluation = setting.recipe.evaluation.model_copy(update={"metrics": Metrics.model_validate(metrics)})
    names = [name for name in list_figures(evaluation, setting.recipe.data, False) if "/" in name]
    assert {key for key in found if not is_listed(key, names)} == set()
    assert {name for name in names if not any(is_listed(key, [name]) for key in found)} == set()
    assert all(find_direction(key) for key in found)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))


def test_of_words(tmp_path):
    paths = [write_corpus(tmp_path / f"{name}.jsonl", 60, seed=seed) for seed, name in enumerate("ab")]
    sources = ", ".join(f"{{kind: jsonl, path: {path}}}" for path in paths)
    setting = Setting(
        DEBERTA, [f"data.sources=[{sources}]", "tokenizer.vocab_size=50", "data.evaluation_share=0.4"]
    )
    lists = {}
    for name, terms in TERMS.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(terms), encoding="utf-8")
        lists[name] = str(tmp_path / f"{name}.txt")
    other = write_corpus(tmp_path / "other.jsonl", 30, seed=3)
    compare(
        setting,
        len(setting.tokenizer),
        terms={"lists": lists},
        rare_words={},
        fragmentation=True,
        pseudo={},
        general={"sources": [{"kind": "jsonl", "path": other}]},
    )


def test_of_names(tmp_path):
    (tmp_path / "names.jsonl").write_text(
        "".join(
            json.dumps({"text": f"name{number}.{'com' if number % 2 else 'org'}"}) + "\n"
            for number in range(400)
        )
    )
    source = f"{{kind: jsonl, path: {tmp_path / 'names.jsonl'}}}"
    setting = Setting(CANINE, [f"data.sources=[{source}]", "data.evaluation_share=0.3", "data.clean=[]"])
    compare(setting, 128, names={"max_span": 3}, pseudo={})
