"""A run's output folder: who owns it, its checkpoints, its end."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

from torch import Tensor

from starpo_trace.schema import MANIFEST_FILE
from starpo_train.checkpoint import (
    Checkpoint,
    advise_intact,
    list_checkpoints,
    read_checkpoint,
    read_values,
    remove_checkpoint,
    write_checkpoint,
)
from starpo_train.config import RunConfig, read_run_config
from starpo_train.dataset import Manifest
from starpo_train.errors import CheckpointError, ConfigError
from starpo_train.exported import save_model_folder
from starpo_train.folderlock import lock_folder
from starpo_train.installed import installed_version
from starpo_train.modelcard import CARD_FILE, render_card
from starpo_train.modelfolder import COMMIT_FILE, find_model_folder
from starpo_train.policy import Policy
from starpo_train.ranks import ALONE, Ranks
from starpo_train.sharding import gather_weights
from starpo_train.slices import Slice
from starpo_train.tomlfile import to_json_dict, write_config
from starpo_train.wholefile import write_atomically

START: Final = "step_000000"
"""The model that a run began with."""


class RunFolder:
    """`run.toml`, `metrics.jsonl`, `checkpoints/step_.../`, `final.json`."""

    def __init__(self, path: Path, *, exclusive: bool = False) -> None:
        """`exclusive`: once claimed, no other process may claim it, until `close`."""
        self.exclusive = exclusive
        self.path = path
        self.config_path = path / "run.toml"
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoints_path = path / "checkpoints"
        self.final_path = path / "final.json"
        self._lock: IO[str] | None = None

    def claim(self, config: RunConfig, *, resume: bool, ranks: Ranks = ALONE) -> Checkpoint | None:
        """Make the folder this run's; when resuming, return the checkpoint to go on from.

        None means from the beginning: a new run, or one killed before its first checkpoint.

        Raises:
            ConfigError: a new run finds another one here, there is nothing to resume, or another
                process is at it.
            CheckpointError: the newest committed checkpoint is damaged; names one that is not.
        """
        if not resume:
            ranks.share(lambda: self._claim_new(config))
            return None
        newest = ranks.share(self._find_newest)  # all go on from what rank 0 sees
        return ranks.agree(lambda: self._read(newest)) if newest else None

    def _read(self, name: str) -> Checkpoint:
        folder = self.checkpoints_path / name
        with advise_intact(folder, self._advise):
            return read_checkpoint(folder)

    def _advise(self, whole: Path, damaged: list[Path]) -> str:
        del whole  # the newest one is taken
        remove = shlex.join(["rm", "-r", *map(str, damaged)])
        resume = shlex.join(["starpo-train", "resume", str(self.path)])
        return f"`{remove}`, then `{resume}` goes on from there"

    def _find_newest(self) -> str | None:
        if not self.config_path.is_file():
            raise ConfigError(f"{self.path}: no run to resume (run.toml is missing).")
        self._hold()
        checkpoints = list_checkpoints(self.checkpoints_path)
        return checkpoints[-1].name if checkpoints else None

    def _claim_new(self, config: RunConfig) -> None:
        if self.config_path.exists() or self.checkpoints_path.exists():
            raise ConfigError(
                f"run.output = {str(self.path)!r} already holds a run; "
                f"`starpo-train resume {self.path}` goes on with it, or choose another folder."
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(
                f"run.output = {str(self.path)!r} exists and holds something else than a run; "
                "choose a new or an empty folder."
            )
        require_outside(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._hold()
        write_config(config, self.config_path)

    def _hold(self) -> None:
        """Two processes would remove each other's checkpoints; a dead one's lock is free."""
        if not self.exclusive:
            return
        self.close()
        self._lock = lock_folder(self.path, doing="training this run")

    def close(self) -> None:
        """Let other processes go on with the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def save_checkpoint(  # noqa: PLR0913 - all that is committed, in keywords
        self,
        policy: Policy,
        *,
        step: int,
        tensors: Mapping[str, Tensor | Slice],
        values: dict[str, Any],
        manifest: Manifest,
        config: RunConfig,
        facts: dict[str, Any],
        last_step: dict[str, Any],
        spared: Path | None = None,
    ) -> Path:
        """Commit a checkpoint and remove those the run no longer keeps; every rank calls it.

        `facts` about the data and the metrics of the last step are for its card; `spared` is an older
        checkpoint that is not removed.
        """
        weights = gather_weights(policy)
        lineage = {
            "starpo_version": installed_version(),
            "dataset": {
                "path": str(manifest.path),
                "digest": manifest.digest,
                "versions": manifest.versions,
            },
            "base_model": config.model.path,
            "config": to_json_dict(config),
        }

        def save_model(folder: Path) -> None:
            base = find_model_folder(config.model.path)
            save_model_folder(policy, folder, weights=weights, base=base)
            card = render_card(lineage=lineage, facts=facts, last_step=last_step, base=base)
            (folder / CARD_FILE).write_text(card, encoding="utf-8")

        folder = write_checkpoint(
            self.name_checkpoint(step),
            save_model=save_model,
            tensors=tensors,
            values=values,
            lineage=lineage,
            ranks=policy.ranks,
        )
        if policy.ranks.is_first and config.train.keep_checkpoints > 0:
            self._remove_old(config.train.keep_checkpoints, spared)
        return folder

    def _remove_old(self, num_kept: int, spared: Path | None) -> None:
        found = list_checkpoints(self.checkpoints_path)
        old = found[:-num_kept]
        if found[0].name == START and spared is not None:  # only there to go back to
            old = list({found[0]: None, **dict.fromkeys(old)})
        for folder in old:
            if folder != spared:
                remove_checkpoint(folder)

    def name_checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step is or would be."""
        return self.checkpoints_path / f"step_{step:06d}"

    def find_healthy(self, step: int | None, *, now: int) -> Path | None:
        """The checkpoint of the last `step` that had not lost the good runs, which may be made `now`.

        Where it was removed by hand, one from before it; None: there is none.
        """
        if step is None:
            return None
        path = self.name_checkpoint(step)
        if step == now or path.is_dir():
            return path
        left = reversed(list_checkpoints(self.checkpoints_path))
        return next((each for each in left if _was_healthy(each)), None)

    @property
    def is_run(self) -> bool:
        """Whether a run has begun here; a folder may hold a run file of that name without one."""
        return all(path.exists() for path in (self.config_path, self.metrics_path)) and (
            self.checkpoints_path.is_dir()
        )

    def reopen(self) -> None:
        """The run goes on: it has no final checkpoint for now."""
        self.final_path.unlink(missing_ok=True)

    def write_final(self, checkpoint: Path, *, step: int, stopped_by: str | None = None) -> None:
        """Name the run's result, the rule that ended it before its time, and the step it had come to."""
        of_checkpoint = int(checkpoint.name.removeprefix("step_"))
        values: dict[str, Any] = {
            "checkpoint": checkpoint.relative_to(self.path).as_posix(),
            "step": of_checkpoint,
        }
        if stopped_by is not None:
            values["early_stop"] = stopped_by
        if of_checkpoint != step:
            values["stopped_at_step"] = step
        write_atomically(self.final_path, json.dumps(values) + "\n")


def _was_healthy(checkpoint: Path) -> bool:
    """Whether it was scored itself, and had not lost the good runs."""
    values = read_values(checkpoint)
    return values.get("watch", {}).get("healthy_at") == values["step"]


def require_outside(output: Path) -> None:
    """Refuse to write inside a run, which would take it for its own, a committed folder or a dataset.

    Raises:
        ConfigError: `output` is one of them or in one.
    """
    for folder in (output.resolve(), *output.resolve().parents):
        if RunFolder(folder).is_run:
            what = "the folder of a run"
        elif (folder / COMMIT_FILE).is_file():
            what = "a committed model folder, which must stay as it is"
        elif (folder / MANIFEST_FILE).is_file() and (folder / "trajectories").is_dir():
            what = "a dataset, which no other version could be exported to then"
        else:
            continue
        raise ConfigError(f"{output} is in {folder}, {what}; choose a folder outside of it.")


def read_final_path(run: Path) -> Path:
    """Run folder -> its final checkpoint.

    Raises:
        CheckpointError: the run has not ended.
    """
    file = RunFolder(run).final_path
    if not file.is_file():
        raise CheckpointError(f"{run}: the run has not ended; `starpo-train resume {run}`.")
    return run / json.loads(file.read_text(encoding="utf-8"))["checkpoint"]


def find_final_name(run: Path) -> str | None:
    """Name of the checkpoint that is a run's result, or None before its end; it may be gone."""
    file = RunFolder(run).final_path
    return read_final_path(run).name if file.is_file() else None


def read_resumed_config(run: Path) -> RunConfig:
    """Run folder -> its resolved configuration, output set to where the folder is now.

    Raises:
        ConfigError: the folder holds no run.
    """
    file = RunFolder(run).config_path
    if not file.is_file():
        raise ConfigError(f"{run}: no run to resume (run.toml is missing).")
    config = read_run_config(file)
    return replace(config, run=replace(config.run, output=run.resolve()))


def find_result(run: Path) -> Path | None:
    """Run folder -> its final checkpoint; before its end the newest one, or None."""
    folder = RunFolder(run)
    if folder.final_path.is_file():
        return read_final_path(run)
    return next(reversed(list_checkpoints(folder.checkpoints_path)), None)


def find_model(name: str) -> str:
    """Model folder or hub name as it is; a run's folder -> its result, else its newest checkpoint.

    Raises:
        CheckpointError: the run has none.
    """
    run = RunFolder(Path(name))
    if not run.config_path.is_file():
        return name
    result = find_result(run.path)
    if result is None:
        raise CheckpointError(f"{name}: the run has no committed checkpoint yet; resume it first.")
    return str(result)
