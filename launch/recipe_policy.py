"""Policies: what a changed key of a recipe means for a run that goes on.

Each key of the schema has one policy (a test walks the schema):

- free: it does not touch the weights (logging, keeping, what is printed).
- recorded: the run goes on and the change is written down. `longer` is one for which only a longer run is.
- content: a place of data, judged by the fingerprint of what lies there.
- flagged: the rest of the run differs, but it is still one run: `--accept-changes KEY` is wanted.
- fixed: with another value it is another run. The optimizer's own numbers are fixed too, as a checkpoint
  brings them along and the recipe's would be ignored without a word (DeepSpeed's clipping as well). So is
  what evaluations are drawn by: the best one and the patience compare them.
"""

from collections.abc import Iterable
from typing import Literal

Policy = Literal["free", "recorded", "longer", "content", "flagged", "fixed"]

_POLICIES: dict[Policy, str] = {
    "free": """name description licence extends evaluation.samples checkpoint.every checkpoint.keep
        checkpoint.in_background checkpoint.on_failure checkpoint.max_failures
        logging.every report_to tracking.project tracking.name data.sources.*.licence
        training.rank_timeout_seconds
        training.max_skipped_in_a_row""",
    "recorded": """evaluation.every evaluation.metrics stopping training.spikes training.deterministic
        data.expected_tokens data.expected_rows""",
    "longer": "training.max_steps training.epochs",
    "content": "data.sources.*.path data.normalize.*.file tokenizer.source tokenizer.extend.terms",
    "flagged": "training.learning_rate training.schedule training.warmup_steps precision",
    "fixed": """model.family model.source model.config model.dropout tokenizer.kind tokenizer.vocab_size
        tokenizer.extend.version tokenizer.extend.first_phase
        data.sources.*.split data.sources.*.weight data.sources.*.kind
        data.sources.*.unit data.sources.*.text_key data.sources.*.group_key data.sources.*.delimiter
        data.sources.*.package data.sources.*.version data.sources.*.sha256 data.sources.*.member
        data.sources.*.format data.sources.*.list_key data.sources.*.name data.sources.*.revision
        data.sources.*.dataset_split data.sources.*.streaming data.row_length data.evaluation_share
        data.packing data.limit data.clean.*.kind data.clean.*.form data.clean.*.max_length
        data.clean.*.min_repeats data.clean.*.min data.clean.*.max data.clean.*.characters data.clean.*.to
        data.normalize.*.kind data.near_duplicates.threshold data.near_duplicates.shingle
        data.near_duplicates.unit data.near_duplicates.across_splits data.bad_input.policy
        data.bad_input.max_bad_share data.streaming data.shard_rows objective.kind objective.masking.kind
        objective.masking.rate objective.masking.replace objective.masking.mean_span
        objective.masking.max_span objective.masking.public_suffix objective.masking.terms.path
        objective.masking.terms.factor objective.generator.num_hidden_layers objective.generator.share
        objective.discriminator_weight objective.temperature training.global_batch training.betas
        training.eps training.weight_decay training.max_grad_norm training.seed evaluation.seed
        evaluation.rate evaluation.best""",
}
POLICIES: dict[str, Policy] = {key: policy for policy, keys in _POLICIES.items() for key in keys.split()}


def take_stricter(one: Policy, other: Policy) -> Policy:
    """Of two policies the one that allows less."""
    return max(one, other, key=list(_POLICIES).index)


def find_policy(path: Iterable[str]) -> Policy:
    """The policy of a key path, else of a section that it is in; of an unknown key the strictest."""
    parts = ["*" if part.isdigit() else part for part in path]
    heads = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    found: list[Policy] = [POLICIES[head] for head in heads if head in POLICIES]
    return found[0] if found else "fixed"
