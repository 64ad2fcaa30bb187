"""The recipe: what a pretraining job is, and nothing about the machine that runs it.

A recipe is a YAML file. Every key is checked, unknown keys are refused, and all that is wrong with a
file is said at once. Reading one imports no torch.
"""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from launch.recipe_data import Data
from launch.recipe_evaluation import Evaluation, StoppingChoice
from launch.recipe_metrics import check_metrics
from launch.recipe_objective import MaskedLM, Objective, ReplacedTokens
from launch.recipe_part import Part
from launch.recipe_stopping import Condition, check_stopping, find_best_condition, list_conditions
from launch.recipe_training import Checkpoint, Training


class Model(Part):
    """Which encoder, and from which weights."""

    family: Literal["deberta", "canine", "auto"]
    """`deberta`: pieces of a tokenizer. `canine`: characters. `auto`: pieces, and any other masked language
    model of transformers, which `config.model_type` names for `source: scratch`: `bert`, `modernbert`, ..."""
    source: str = Field(min_length=1)
    """`scratch`, a hub id, or a folder in Hugging Face format."""
    config: dict[str, int | float | bool | str | list[str]] = {}
    """Sizes for `source: scratch`, in the names of the Hugging Face config (`hidden_size`, ...)."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of hidden states and attention; null keeps the checkpoint's own."""

    @field_validator("config")
    @classmethod
    def _check_homes(cls, config: dict) -> dict:
        for key, home in {
            "vocab_size": "tokenizer.vocab_size",
            "hidden_dropout_prob": "model.dropout",
            "attention_probs_dropout_prob": "model.dropout",
            "head_code_points": "the corpus",
        }.items():
            if key in config:
                raise ValueError(f"{key} has its home in {home}; remove it here")
        return config

    @model_validator(mode="after")
    def _check_source(self) -> "Model":
        if self.config and self.source != "scratch":
            raise ValueError(f"config is for source: scratch; {self.source!r} brings its own sizes")
        if self.source == "scratch" and "hidden_size" not in self.config:
            raise ValueError("config.hidden_size is wanted when source is scratch")
        if self.family == "auto" and self.source == "scratch" and "model_type" not in self.config:
            raise ValueError("config.model_type is wanted for family auto: bert or modernbert, for instance")
        if self.family != "auto" and "model_type" in self.config:
            raise ValueError(f"config.model_type is for family auto; {self.family} says it already")
        return self


class FirstPhase(Part):
    """The first steps of a run, in which only the rows of the new pieces are trained.

    They are part of the run's steps; warmup and decay come after them.
    """

    steps: float = Field(gt=0)
    """Below 1 a share of the run's steps, else a whole number of steps."""
    learning_rate: float | None = Field(None, ge=0, le=1)
    """The same in each of them; null: the one that the training reaches after its warmup."""

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, steps: float) -> float:
        if steps >= 1 and steps != int(steps):
            raise ValueError(f"steps is a share below 1 or a whole number, not {steps}")
        return steps


class Extension(Part):
    """Terms that the tokenizer gets as pieces of their own."""

    terms: str
    """A list, one term a line (`vocab mine` writes one); `_` for a space."""
    version: str | None = None
    """Of the tokenizer; null: one up from that of the source."""
    first_phase: FirstPhase | None = None
    """Train the rows of the new pieces first, alone; null: train everything from the start."""


class Tokenizer(Part):
    """Where the pieces come from. A character model has no tokenizer section."""

    source: str = Field(min_length=1)
    """`train` (on the training rows), a hub id, or a folder."""
    kind: Literal["unigram"] | None = None
    """For `source: train`."""
    vocab_size: int | None = Field(None, ge=16, le=1_000_000)
    """For `source: train`: pieces, special ones included."""
    extend: Extension | None = None
    """New terms as pieces of their own."""

    @model_validator(mode="after")
    def _check_training(self) -> "Tokenizer":
        given = self.kind is not None and self.vocab_size is not None
        if self.source == "train" and not given:
            raise ValueError("source: train wants both kind and vocab_size")
        if self.source != "train" and (self.kind is not None or self.vocab_size is not None):
            raise ValueError(f"kind and vocab_size are for source: train; {self.source!r} brings its own")
        if self.source == "train" and self.extend is not None:
            raise ValueError("extend is for a ready tokenizer; one that is trained here learns the terms")
        return self


class Logging(Part):
    """How often a training step is written to metrics.jsonl."""

    every: int = Field(default=1, ge=1)


class Tracking(Part):
    """Under which names trackers file the run."""

    project: str = Field(default="maskwright", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Weights & Biases and trackio: the project; MLflow: the experiment."""
    name: str | None = Field(default=None, min_length=1)
    """Null: the recipe's name."""


class Recipe(Part):
    """A masked-language-model pretraining job."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Also the name of the run folder."""
    description: str = ""
    licence: str | None = None
    """Of the trained weights, for the model card; null: the card names none."""
    extends: str | None = None
    """Another recipe (a name or a path) whose values this one starts from."""
    model: Model
    tokenizer: Tokenizer | None = None
    data: Data
    objective: Objective
    training: Training
    evaluation: Evaluation
    checkpoint: Checkpoint
    stopping: StoppingChoice | None = None
    """Null: the run goes to its last step. A list: any of its conditions ends the run."""
    logging: Logging = Field(default_factory=lambda: Logging())
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 from compute capability 8.0, fp16 on older GPUs, fp32 on a CPU. `tf32`: fp32 but for the
    factors of products, which are rounded to 10 bits."""
    report_to: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = []
    """Trackers beside metrics.jsonl, which is always written. Each wants its package; without an account or a
    server of theirs `wandb`, `trackio` and `mlflow` keep what they get on this machine."""
    tracking: Tracking = Field(default_factory=lambda: Tracking())

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What ends the run before its last step."""
        return list_conditions(self.stopping, self.objective.kind == "rtd")

    @property
    def best(self) -> Condition:
        """What the best model is chosen by."""
        return find_best_condition(self.evaluation.best, self.conditions, self.objective.kind == "rtd")


def contradictions(parts: dict[str, Part | None]) -> list[tuple[str, str]]:
    """What the sections say against each other, as (key path, message).

    Args:
        parts: the valid sections by name (None: left out); one that is wrong in itself is not there.
    """
    found: list[tuple[str, str]] = []
    model, tokenizer, objective, data = (parts.get(k) for k in ("model", "tokenizer", "objective", "data"))
    if not isinstance(model, Model):
        return found
    characters = model.family == "canine"
    if characters and tokenizer is not None:
        found.append(("tokenizer", "a canine model reads characters; remove this section"))
    if not characters and "tokenizer" in parts and tokenizer is None:
        text = f"family {model.family} wants a tokenizer: source: train, a hub id or a folder"
        found.append(("tokenizer", text))
    if isinstance(objective, MaskedLM | ReplacedTokens):
        kind = objective.masking.kind
        if characters != kind.startswith("character"):
            wanted = "character or character_span" if characters else "whole_word, token or span"
            found.append(("objective.masking.kind", f"{model.family} wants {wanted}, not {kind}"))
    if isinstance(data, Data) and characters and "packing" in data.model_fields_set and data.packing:
        found.append(("data.packing", "canine takes one document a row; set packing: false"))
    found += _check_objective(model, objective)
    found += check_stopping(parts)
    found += _check_first_phase(model, tokenizer, objective)
    evaluation = parts.get("evaluation")
    if isinstance(evaluation, Evaluation):
        is_streaming = isinstance(data, Data) and data.streaming
        found += check_metrics(evaluation.metrics, model.family, is_streaming=is_streaming)
    training = parts.get("training")
    rewinds = isinstance(training, Training) and training.spikes is not None and training.spikes.rewind
    if rewinds and isinstance(data, Data) and data.streaming:
        text = "a stream cannot leave rows out; set rewind: false to have spikes logged only"
        found.append(("training.spikes.rewind", text))
    trains = isinstance(tokenizer, Tokenizer) and tokenizer.source == "train"
    if isinstance(data, Data) and data.streaming and trains:
        found.append(
            ("data.streaming", "a stream is read once, so that no tokenizer can be trained on it first")
        )
    return found


def _check_first_phase(model: Model, tokenizer: Part | None, objective: Part | None) -> list[tuple[str, str]]:
    extension = tokenizer.extend if isinstance(tokenizer, Tokenizer) else None
    if extension is None or extension.first_phase is None:
        return []
    key = "tokenizer.extend.first_phase"
    if model.source == "scratch":
        return [(key, "a model from scratch has no old rows to spare: every row is new; remove this")]
    if isinstance(objective, ReplacedTokens):
        text = "the rows of rtd are sums of two embeddings; remove this, or take kind: mlm first"
        return [(key, text)]
    return []


def _check_objective(model: Model, objective: Part | None) -> list[tuple[str, str]]:
    if not isinstance(objective, ReplacedTokens):
        return []
    if model.family == "canine":
        return [("objective.kind", "rtd replaces pieces, and a canine model reads characters; set kind: mlm")]
    if model.family == "auto":
        return [("objective.kind", "rtd is for family deberta; set kind: mlm")]
    most = model.config.get("num_hidden_layers")
    wanted = objective.generator.num_hidden_layers
    if isinstance(most, int) and wanted is not None and wanted > most:
        return [("objective.generator.num_hidden_layers", f"{wanted} are more than the model's {most}")]
    return []
