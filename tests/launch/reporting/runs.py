"""Run folders as a run leaves them, with every kind of event, written by hand."""

import json
import math

HOSTILE = "<script>alert('x')</script> & \"quotes\" {{ 7*7 }} </style> --> ]]>"
RATE = 1000.0


def evaluation(step, perplexity, **further):
    figures = {"loss": math.log(perplexity), "perplexity": perplexity, "accuracy": 0.25 if step else 0.0}
    return {"kind": "eval", "step": step, **figures, "num_targets": 500, **further}


def list_further(factor):
    """Figures of the further metrics, times a factor."""
    found = {
        "main/accuracy_top5": 0.5,
        "main/terms/perplexity": 60.0 * factor,
        "main/terms/perplexity_low": 50.0 * factor,
        "main/terms/perplexity_high": 72.0 * factor,
        "main/terms/num_targets": 90,
        "main/terms/unigram_perplexity": 333.0,
        "main/terms/taxa/perplexity": 80.0 * factor,
        "main/terms/taxa/perplexity_low": 70.0 * factor,
        "main/terms/taxa/perplexity_high": 95.0 * factor,
        "main/terms/taxa/num_targets": 40,
        "main/rare_words/unseen/perplexity": 900.0 * factor,
        "main/rare_words/unseen/num_targets": 30,
        "main/rare_words/1-9/perplexity": 400.0 * factor,
        "main/rare_words/1-9/num_targets": 70,
        "main/names/suffix/com/perplexity": 7.0 * factor,
        "main/names/suffix/com/num_targets": 70,
        "main/recovery/exact": 0.3,
        "main/recovery/1/exact": 0.4,
        "main/recovery/1/num_spans": 12,
        "main/fragmentation/pieces_per_word": 1.5,
        "main/fragmentation/terms_cut": 0.2,
        "main/fragmentation/base/pieces_per_word": 2.0,
        "main/fragmentation/base/terms_cut": 0.9,
        "general/perplexity": 30.0 * factor,
        "general/num_targets": 33,
        "main/probes/topics/accuracy": 0.8,
        "main/probes/topics/majority_accuracy": 0.55,
    }
    return {f"eval/{name}": value for name, value in found.items()}


def example(text="a plain row with ", hidden="word", rank=3):
    fills = [{"piece": "thing", "probability": 0.5}, {"piece": hidden, "probability": 0.25}]
    place = {"hidden": hidden, "shown": "masked", "rank": rank, "loss": 1.5, "fills": fills}
    return {"kind": "example", "step": 100, "row": rank, "loss": 1.5, "parts": [{"text": text}, place]}


def list_events(num_steps=100, perplexity=43.0, text="goo_le.com"):
    yield {
        "kind": "data",
        "step": 0,
        "num_documents": 9816,
        "num_rows": 24_923,
        "num_evaluation_documents": 184,
        "dropped": {"duplicate": 7, "length": 3},
        "read": {"lines": 10_033, "good": 10_030, "blank": 2, "skipped": {"no text": 1}},
    }
    yield {"kind": "masks", "step": 0, "asked_rate": 0.15, "realised_rate": 0.1498}
    yield {"kind": "weights", "step": 0, "num_parameters": 1_234_567}
    for name, value in (("unigram", 237.0), ("neighbours", 108.0)):
        yield {"kind": "yardstick", "step": 0, "name": name, "perplexity": value, "num_targets": 500}
    yield evaluation(0, 2014.0, **list_further(20))
    place = {"position": 3, "candidates": [{"piece": "g", "probability": 0.75}]}
    for step in (0, num_steps):
        yield {"kind": "fill", "step": step, "text": text, "places": [place], "completed": f"filled {step}"}
    for step in range(1, num_steps + 1):
        yield {
            "kind": "train",
            "step": step,
            "loss": 8 - step / 50,
            "num_targets": 90,
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
            "tokens_per_second": RATE,
            "rows_per_second": 128.0,
            "data_wait_fraction": 0.01,
            "peak_memory_bytes": 2**30,
            "epoch": step / 50,
            "skipped_steps": 2 if step > 50 else 0,
        }
        if step == num_steps // 2:
            yield evaluation(step, 2 * perplexity, **list_further(2))
            yield {"kind": "save", "step": step, "path": f"checkpoint-{step}"}
    yield evaluation(num_steps, perplexity, **list_further(1))
    for rank, hidden in ((1, "word"), (4, text), (30, "rarer"), (999, "rarest")):
        yield example(hidden=hidden, rank=rank)
    worst = [{"text": text, "loss": 9.25, "count": 4}]
    best = [{"text": "the", "loss": 0.5, "count": 300}]
    counts = {"num_targets": 500, "num_units": 120, "least_count": 3, "num_rows": 40}
    yield {"kind": "words", "step": num_steps, "unit": "word", "worst": worst, "best": best, **counts}
    yield {"kind": "end", "step": num_steps, "reason": "steps"}


RECIPE = """\
name: small
description: a try
model: {family: deberta, source: scratch}
data:
  sources:
  - {kind: package, package: a-corpus, version: 1.0.0, licence: MIT}
  row_length: 64
objective: {masking: {kind: whole_word, rate: 0.15}}
training: {global_batch: 64, learning_rate: 0.001}
"""
PLAN = {
    "recipe": "small",
    "profile": "cpu",
    "num_steps": 100,
    "num_tokens": 50_000,
    "global_batch": 64,
    "num_evaluations": 2,
    "num_saves": 1,
    "num_parameters": 1_234_567,
    "time": {"step": 0.25, "origin": "measured"},
    "memory": {"cpu_bytes": 2**29, "gpu_bytes": 0},
    "seconds": 30.0,
}


def make_run(folder, *, recipe=RECIPE, plan=PLAN, more=(), **changes):
    """A whole run folder; `more` events come before the end."""
    folder.mkdir(parents=True)
    *events, end = list_events(**changes)
    lines = [json.dumps(event) + "\n" for event in (*events, *more, end)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "recipe.resolved.yaml").write_text(recipe)
    (folder / "command.txt").write_text("accelerate launch ...\n")
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "device": "cpu"}))
    return folder
