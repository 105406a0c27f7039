"""Metrics records -> TensorBoard, Weights & Biases, MLflow.

`metrics.jsonl` stays the truth: a tracker gets what is written there, in a thread of its own, so that
one which fails or hangs never stops or slows the run. A resumed run sends what a tracker lacks and
nothing that it has.
"""

import importlib
import importlib.util
import json
import math
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from starpo_train.config import RunConfig
from starpo_train.errors import ConfigError
from starpo_train.metrics import MEASURED, STEP, MetricsWriter, SilentWriter, read_metrics
from starpo_train.tomlfile import to_json_dict

CLOSE_TIMEOUT_S: Final = 30.0
"""How long the end of a run waits for a tracker to take the rest."""
_GROUPS: Final = {
    "reward": ("in_group_reward_std", "advantage_mean_abs", "reward_mean"),
    "policy": ("approx_kl", "entropy", "ess_fraction", "clip_fraction", "drift"),
    "speed": ("tokens_per_s", "wall_s", "tokens", "computed_tokens", "action_tokens"),
}
_GROUP_OF: Final = {name: group for group, names in _GROUPS.items() for name in names}
_PACKAGES: Final = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Tracker(Protocol):
    """Where numbers go beside `metrics.jsonl`."""

    held_steps: set[int]
    """Steps that need not be sent: a life of the run before this one has done it."""

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        """Send one step's numbers."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class TrackedMetrics:
    """`metrics.jsonl` and the trackers beside it."""

    def __init__(
        self,
        metrics: MetricsWriter | SilentWriter,
        trackers: "Sequence[BackgroundTracker]" = (),
        *,
        progress: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:
        self._metrics = metrics
        self._trackers = trackers
        self._progress = progress
        self.last_step: dict[str, Any] = {}
        """Record of the last step that was written."""
        if isinstance(metrics, MetricsWriter):
            for record in read_metrics(metrics.path):
                self._track(record)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; a step's and a measurement's go to the trackers too."""
        self._metrics.write(record)
        self._track(record)
        self._report_failures()

    def close(self) -> None:
        """Close all; a tracker that does not answer is left behind."""
        for tracker in self._trackers:
            tracker.close()
        self._report_failures()
        self._metrics.close()

    def _track(self, record: dict[str, Any]) -> None:
        if record.get("event", STEP) not in MEASURED or "step" not in record:
            return
        if "event" not in record:
            self.last_step = record
        for tracker in self._trackers:
            tracker.log(_select_numbers(record), step=record["step"])

    def _report_failures(self) -> None:
        for tracker in self._trackers:
            if (failure := tracker.take_failure()) is not None:
                record = {"event": "tracker_failed", "tracker": tracker.name, "error": failure}
                self._metrics.write(record)
                self._progress(record)


class BackgroundTracker:
    """One tracker in a thread of its own; after its first failure it gets nothing more."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        self.name = name
        self._failure: str | None = None
        self._queue: queue.SimpleQueue[tuple[dict[str, float], int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._work, args=(open_tracker,), name=f"starpo-{name}", daemon=True
        )
        self._thread.start()

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        """Queue one step's numbers."""
        if self._thread.is_alive():
            self._queue.put((numbers, step))

    def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Wait until all is sent, but no longer than that."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._failure = f"did not take everything within {timeout_s:g} s"

    def take_failure(self) -> str | None:
        """Why it failed; once."""
        failure, self._failure = self._failure, None
        return failure

    def _work(self, open_tracker: Callable[[], Tracker]) -> None:
        try:
            tracker = open_tracker()
            while (item := self._queue.get()) is not None:
                numbers, step = item
                if step not in tracker.held_steps:
                    tracker.log(numbers, step=step)
            tracker.close()
        except Exception as error:  # noqa: BLE001 - whatever another library does must not end a run
            self._failure = f"{type(error).__name__}: {' '.join(str(error).split())}"


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed.

    Raises:
        ConfigError: names them, and what to install.
    """
    for name in names:
        if name not in _PACKAGES:
            known = ", ".join(_PACKAGES)
            raise ConfigError(f"run.trackers: {name!r} is none; known here: {known}.")
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            wanted = "'starpo[track]'" if name == "tensorboard" else _PACKAGES[name]
            raise ConfigError(
                f"run.trackers: {name!r} is not installed; `pip install {wanted}`, or leave it out."
            )


def open_metrics(
    config: RunConfig,
    folder: Path,
    *,
    step: int,
    progress: Callable[[dict[str, Any]], None] = lambda record: None,
    is_first: bool = True,
) -> TrackedMetrics:
    """Metrics of the run in `folder`, which goes on after `step`; only the first rank has any."""
    if not is_first:
        return TrackedMetrics(SilentWriter(folder / "metrics.jsonl"))
    metrics = MetricsWriter(folder / "metrics.jsonl", keep_up_to_step=step)
    opening: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoardTracker(folder / "tensorboard", step=step),
        "wandb": lambda: WandbTracker(config, folder, step=step),
        "mlflow": lambda: MlflowTracker(config, folder),
    }
    trackers = [BackgroundTracker(name, opening[name]) for name in config.run.trackers]
    return TrackedMetrics(metrics, trackers, progress=progress)


class TensorBoardTracker:
    """Event files in the run's folder: `tensorboard --logdir RUN`."""

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.held_steps = {held for held in _read_tensorboard_steps(folder) if held <= step}
        # readers drop what earlier files hold from this step on
        purge_step = step + 1 if folder.is_dir() else None
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        """On disk at once, so that a kill loses nothing."""
        for name, value in numbers.items():
            self._writer.add_scalar(name_scalar(name), value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandbTracker:
    """Weights & Biases; WANDB_PROJECT, WANDB_MODE and so on are the user's."""

    def __init__(self, config: RunConfig, folder: Path, *, step: int) -> None:
        wandb = importlib.import_module("wandb")
        # steps after the checkpoint are repeated bit for bit, and W&B ignores those it has
        self.held_steps = set(range(1, step + 1))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "starpo"),
            id=_remember(folder, "wandb", lambda: uuid.uuid4().hex[:12]),
            name=config.run.name or folder.name,
            dir=str(folder),
            config=to_json_dict(config),
            resume="allow",
        )

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        """Under the names that TensorBoard has."""
        self._run.log({name_scalar(name): value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        """Finish the run there."""
        self._run.finish()


class MlflowTracker:
    """MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are the user's."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._client = self._mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "starpo")
        self._run_id = _remember(folder, "mlflow", lambda: self._create(config, folder, name))
        history = self._client.get_metric_history(self._run_id, "train/loss")
        self.held_steps = {point.step for point in history}

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        """One request for all of a step."""
        now_ms = int(time.time() * 1000)
        point = self._mlflow.entities.Metric
        points = [point(name_scalar(key), value, now_ms, step) for key, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=points)

    def close(self) -> None:
        """Mark the run there as finished."""
        self._client.set_terminated(self._run_id)

    def _create(self, config: RunConfig, folder: Path, experiment: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
        run_name = config.run.name or folder.name
        run_id = self._client.create_run(experiment_id, run_name=run_name).info.run_id
        params = [
            self._mlflow.entities.Param(f"{section}.{key}", str(value)[:500])
            for section, options in to_json_dict(config).items()
            for key, value in options.items()
        ]
        self._client.log_batch(run_id, params=params)
        return run_id


def name_scalar(name: str) -> str:
    """Name of a number -> the same in its group: `approx_kl` is `policy/approx_kl`."""
    return f"{_GROUP_OF.get(name, 'train')}/{name}"


def _read_tensorboard_steps(folder: Path) -> set[int]:
    """Steps whose loss is in the event files; a record torn by a kill ends its file."""
    if not folder.is_dir():
        return set()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    if "train/loss" not in events.Tags()["scalars"]:
        return set()
    return {event.step for event in events.Scalars("train/loss")}


def _remember(folder: Path, tracker: str, create: Callable[[], str]) -> str:
    """A tracker's id of this run, the same after each resume."""
    file = folder / f"{tracker}_run.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))["id"]
    identity = create()
    file.write_text(json.dumps({"id": identity}) + "\n", encoding="utf-8")
    return identity


def _select_numbers(record: dict[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in record.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and key != "step"
    }
