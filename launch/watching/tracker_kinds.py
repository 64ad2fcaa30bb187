"""The kinds of trackers: what each of Accelerate's classes needs to be opened, and to go on where it was."""

import os
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from launch.watching.courier import Opened
from launch.watching.wandb_log import find_offline_steps


@dataclass(frozen=True)
class Target:
    """Where a tracker files a run.

    Attributes:
        config: flat settings that go along.
        id: of the run there, from an earlier session; None: a new one.
        resumed_step: None: the run starts anew.
    """

    folder: Path
    project: str
    run_name: str
    config: Mapping[str, Any]
    id: str | None = None
    resumed_step: int | None = None


class _Opened:
    """A started tracker of Accelerate, with the id of its run and, where it can tell, what it has."""

    def __init__(self, tracker: Any, run_id: str, sent: Mapping[str, int] | None = None):
        self.id, self.sent = run_id, sent
        self._tracker = tracker

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log the values of a step."""
        self._tracker.log(dict(values), step=step)

    def finish(self) -> None:
        """End the tracker's run."""
        self._tracker.finish()


def _open_tensorboard(target: Target) -> Opened:
    """Event files in RUN/tensorboard; steps beyond the resumed one are purged from them."""
    from accelerate.tracking import TensorBoardTracker

    step, is_there = target.resumed_step, (target.folder / "tensorboard").is_dir()
    first = 0 if step is None else step + 1
    tracker = TensorBoardTracker(
        "tensorboard", logging_dir=str(target.folder), purge_step=first if is_there else None
    )
    tracker.start()
    if step is None or not is_there:
        tracker.writer.add_text("config", _to_table(target.config), 0)
        return _Opened(tracker, "tensorboard", {})
    return _Opened(tracker, "tensorboard", {"train": step, "eval": step})


def _to_table(config: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {str(value).replace('|', '/')} |" for key, value in config.items()]
    return "\n".join(["| key | value |", "| --- | --- |", *rows])


def _open_wandb(target: Target) -> Opened:
    """A run of Weights & Biases; offline, in RUN/wandb, where there is no account or WANDB_MODE says so."""
    import wandb  # pyright: ignore[reportMissingImports]
    from accelerate.tracking import WandBTracker

    run_id = target.id or uuid.uuid4().hex[:12]
    mode = os.environ.get("WANDB_MODE")
    is_offline = mode == "offline" or not (mode or _has_wandb_account())
    settings = wandb.Settings(
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        silent=True,
        x_disable_meta=True,
        x_save_requirements=False,
    )
    more = {"mode": "offline"} if is_offline else {"resume": "allow"}
    tracker = WandBTracker(
        target.project,
        id=run_id,
        name=target.run_name,
        dir=str(target.folder),
        config=dict(target.config),
        settings=settings,
        **more,
    )
    sent = find_offline_steps(target.folder, run_id) if is_offline and target.id else None
    tracker.start()
    if not is_offline and tracker.run.resumed:
        sent = {"train": tracker.run.step - 1, "eval": tracker.run.step - 1}
    return _Opened(tracker, run_id, sent)


def _has_wandb_account() -> bool:
    """Whether there are credentials; without any wandb would ask for them in the middle of the start."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc().authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def _open_trackio(target: Target) -> Opened:
    """A run of trackio, in its folder on this machine (TRACKIO_DIR) unless TRACKIO_SPACE_ID is set."""
    from accelerate.tracking import TrackioTracker

    name = target.id or f"{target.run_name}-{uuid.uuid4().hex[:6]}"
    tracker = TrackioTracker(
        target.project,
        name=name,
        resume="allow" if target.id else "never",
        config=dict(target.config),
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    tracker.start()
    return _Opened(tracker, name, _find_in_trackio(target.project, name) if target.id else None)


def _find_in_trackio(project: str, name: str) -> dict[str, int] | None:
    """The highest steps of a local run by kind; None: it lies elsewhere."""
    if os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"):
        return None
    from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

    rows = SQLiteStorage.get_logs(project, name)
    steps = {kind: [row["step"] for row in rows if f"{kind}/loss" in row] for kind in ("train", "eval")}
    return {kind: max(found) for kind, found in steps.items() if found}


class _MLflow(_Opened):
    """MLflow takes a smaller alphabet for the names of metrics."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log the values of a step."""
        super().write({re.sub(r"[^\w\-. /:]", "_", key): value for key, value in values.items()}, step)


def _open_mlflow(target: Target) -> Opened:
    """A run of MLflow, in RUN/mlflow unless MLFLOW_TRACKING_URI names a store."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # pyright: ignore[reportMissingImports]
    from accelerate.tracking import MLflowTracker

    place = (target.folder / "mlflow").resolve()
    artifacts = None
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        place.mkdir(exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
        artifacts = (place / "artifacts").as_uri()
    tracker = MLflowTracker(
        target.project,
        logging_dir=artifacts,
        run_id=target.id,
        run_name=target.run_name,
        tags={"mlflow.source.name": "maskwright", "mlflow.user": "", "maskwright.run": target.run_name},
    )
    tracker.start()
    run_id = tracker.active_run.info.run_id
    if target.id:
        return _MLflow(tracker, run_id, _find_in_mlflow(run_id))
    tracker.store_init_configuration(dict(target.config))
    return _MLflow(tracker, run_id)


def _find_in_mlflow(run_id: str) -> dict[str, int]:
    """The highest steps of a run by kind."""
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    histories = {
        kind: MlflowClient().get_metric_history(run_id, f"{kind}/loss") for kind in ("train", "eval")
    }
    return {kind: max(point.step for point in points) for kind, points in histories.items() if points}


OPENERS: dict[str, Callable[[Target], Opened]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "trackio": _open_trackio,
    "mlflow": _open_mlflow,
}
