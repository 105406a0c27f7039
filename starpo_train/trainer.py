"""TrainingData + Policy -> checkpoints and metrics.

StarPO here is offline: PPO's clipped objective over whole logged trajectories, with the recorded
log-probabilities as the behaviour policy throughout; nothing is sampled. A step is a number of
trajectories; its packs share one set of denominators, so packing cannot change the loss.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starpo_train.blame import refuse_gradient, refuse_loss
from starpo_train.changes import Changes
from starpo_train.checkpoint import Checkpoint
from starpo_train.config import RunConfig
from starpo_train.diagnostics.watch import Watch
from starpo_train.errors import DataError
from starpo_train.limits import find_exceeded_limit
from starpo_train.memory import PackBudget
from starpo_train.optimizer import Optimizer
from starpo_train.policy import Policy
from starpo_train.proximal import PROXIMAL, Proximal, correct_rows
from starpo_train.ranks import JointStop
from starpo_train.run_folder import RunFolder, find_final_name
from starpo_train.schedule import plan_epoch
from starpo_train.scoring import score_rows
from starpo_train.signals import StopRequest
from starpo_train.slices import Slice, take_slice
from starpo_train.step import (
    Step,
    accumulate_gradients,
    build_step,
    measure_drift,
    summarize_sums,
)
from starpo_train.trackers import open_metrics
from starpo_train.trainingdata import TrainingData

Progress = Callable[[dict[str, Any]], None]
"""Called with the start record, then with each step's record and each event's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """Where a run ended."""

    final_path: Path
    """Folder of the run's result: the last committed checkpoint, or one that it went back to."""
    num_steps: int
    metrics_path: Path
    interrupted: bool = False
    """Stopped by SIGINT or SIGTERM; resuming goes on."""
    already_finished: bool = False
    """Resumed, but there was nothing left to do."""
    stopped_by: str | None = None
    """Rule that found the run collapsed and ended it (docs/diagnostics.md)."""


@dataclass(slots=True, kw_only=True)
class Position:
    """How far a run is: all that resuming needs beside tensors."""

    step: int = 0
    """Optimizer steps taken."""
    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    finished: bool = False


class Trainer:
    """One run: its policy, data, optimizer and position."""

    def __init__(
        self,
        config: RunConfig,
        *,
        policy: Policy,
        data: TrainingData,
        folder: RunFolder,
        budget: PackBudget | None = None,
        checkpoint: Checkpoint | None = None,
        changes: Changes | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Put the parts together; with a checkpoint, restore optimizer and position from it.

        `changes` of the configuration since that checkpoint are for the record.
        """
        self.config = config
        self.policy = policy
        self.data = data
        self.folder = folder
        self.position = Position()
        self._budget = budget or PackBudget(config.train.tokens_per_pack)
        self._proximal: Proximal | None = None
        self._batches_per_epoch = math.ceil(
            len(data.rows_of_N) / config.train.trajectories_per_step
        )
        epochs = config.train.epochs
        self._total_steps = epochs * self._batches_per_epoch
        if data.objective.compares_attempts:  # whole tasks may make fewer
            self._total_steps = sum(len(self._plan_epoch(epoch)) for epoch in range(epochs))
        self._optimizer = Optimizer(policy, config.train, total_steps=self._total_steps)
        if checkpoint is not None:
            _require_same_data(checkpoint, data)
            self._optimizer.restore(checkpoint.tensors)
            self.position = Position(**checkpoint.values["position"])
            if self.position.batch:  # in the middle of an epoch
                self._proximal = self._restore_proximal(checkpoint)
        state = checkpoint.values.get("watch") if checkpoint is not None else None
        self._watch = Watch(config, policy=policy, data=data, state=state)
        self._ranks = policy.ranks
        self._progress = progress or (lambda record: None)
        self._metrics = open_metrics(
            config,
            folder.path,
            step=self.position.step,
            progress=self._progress,
            is_first=self._ranks.is_first,
        )
        self._checkpoint = checkpoint.path if checkpoint is not None else None
        self._changes = changes or {}

    def run(self, stop: StopRequest | JointStop) -> TrainResult:
        """Train to the end, or until `stop`; either way the last step is committed."""
        already_finished = self._checkpoint is not None and self._is_finished()
        told = find_final_name(self.folder.path) if already_finished else None
        try:
            is_longer = "train.epochs" in self._changes and self._watch.stopped_by is None
            if not already_finished or is_longer:
                self._announce()
            if not already_finished and self._ranks.is_first:
                self.folder.reopen()
            while not self._is_finished() and not stop.requested:
                self._train_epoch(stop)
            if self._is_finished():
                self._score_held_back()
            last = self._commit()
            final = self._find_result(last)
            if self._is_finished() and final.name != told:
                self._report_rollback(final, last)
            if self._is_finished() and self._ranks.is_first:
                self.folder.write_final(
                    final, step=self.position.step, stopped_by=self._watch.stopped_by
                )
        finally:
            self._metrics.close()
        return TrainResult(
            final_path=final,
            num_steps=self.position.step,
            metrics_path=self.folder.metrics_path,
            interrupted=not self._is_finished(),
            already_finished=already_finished,
            stopped_by=self._watch.stopped_by,
        )

    def _is_finished(self) -> bool:
        return self.position.finished or self.position.epoch >= self.config.train.epochs

    def _train_epoch(self, stop: StopRequest | JointStop) -> None:
        """What is left of an epoch; it ends early at a limit of the policy's drift, when asked to
        stop, or, and the run with it, when the run is found to have collapsed.
        """  # noqa: D205
        position, every = self.position, self.config.train.checkpoint_every_steps
        batches = self._plan_epoch(position.epoch)
        self._refresh_proximal()
        while position.batch < len(batches):
            record = self.train_step(batches[position.batch])
            if record is None:  # beyond a limit; at an epoch's first batch, so would be the rest
                position.finished = position.batch == 0
                break
            position.batch += 1
            self._report(record)
            if self._has_collapsed(record):
                position.finished = True
            if position.batch == len(batches) or position.finished:
                break
            if every and position.step % every == 0 and not self._commit_scored():
                break
            if stop.requested:
                return
        position.epoch, position.batch = position.epoch + 1, 0
        self._proximal = None
        if every and position.step % every == 0 and not self._is_finished():
            self._commit_scored()

    def train_step(self, trajectories: list[int]) -> dict[str, Any] | None:
        """One optimizer step on some trajectories; None when a limit of drift forbids it."""
        started = time.perf_counter()
        found = self._budget.run(
            lambda config: accumulate_gradients(
                self.policy,
                self._build_step(trajectories, config),
                self.data.objective,
                self.data.name_row,
            ),
            self.config,
            undo=self._optimizer.discard_gradients,
        )
        self._report_split(self.position.step + 1)
        if not math.isfinite(found.sums["loss"]):
            raise refuse_loss(found.suspect_rows, found.sums["loss"], **self._suspects())
        if self._is_beyond_limit(found.sums):
            return None
        grad_norm = self._clip_gradients(trajectories)
        learning_rate = self._optimizer.apply(self.position.step, grad_norm=grad_norm)
        self.position.step += 1
        wall_s = time.perf_counter() - started
        return {
            "step": self.position.step,
            "epoch": self.position.epoch,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "tokens_per_s": found.sums["num_tokens"] / wall_s,
            "wall_s": wall_s,
            "algorithm": self.data.choice.algorithm,
        } | (summarize_sums(found.sums) | self._watch.describe_step(trajectories))

    def _plan_epoch(self, epoch: int) -> list[list[int]]:
        """Trajectories of each step of an epoch; depends on seed and epoch only."""
        return plan_epoch(
            self.data.task_of_N,
            num_steps=self._batches_per_epoch,
            seed=[self.config.run.seed, epoch],
            by_task=self.config.train.order == "tasks",
            whole_tasks=self.data.objective.compares_attempts,
        )

    def _build_step(self, trajectories: list[int], config: RunConfig | None = None) -> Step:
        config = config or self.config
        return build_step(
            self.data,
            config,
            trajectories,
            shared_up_to=self.policy.shared_up_to,
            tokens_per_pack=self.policy.limit_pack(config.train.tokens_per_pack),
            ranks=self._ranks,
            proximal=self._proximal,
        )

    def _refresh_proximal(self) -> None:
        """Ask the policy as it is at an epoch's start, where the loss is to be held near that."""
        section = self.config.algorithm
        if section.proximal == "none" or self.data.choice.algorithm != "starpo" or self._proximal:
            return
        scores = self._budget.run(
            lambda config: score_rows(
                self.policy,
                self.data.rows,
                tokens_per_pack=config.train.tokens_per_pack,
                name_row=self.data.name_row,
            ),
            self.config,
        )
        self._proximal = self._correct(scores.logprobs_R)
        self._metrics.write(
            {
                "event": "proximal",
                "step": self.position.step,
                "epoch": self.position.epoch,
                "correction_kept": self._proximal.kept,
            }
        )

    def _restore_proximal(self, checkpoint: Checkpoint) -> Proximal | None:
        flat_A = checkpoint.tensors.get(PROXIMAL)
        if flat_A is None:
            return None
        ends = np.cumsum([row.num_actions for row in self.data.rows])
        return self._correct(list(np.split(flat_A.numpy(), ends[:-1])))

    def _correct(self, logprobs_R: list[np.ndarray]) -> Proximal:
        data, section = self.data, self.config.algorithm
        return correct_rows(logprobs_R, data.rows, data.rows_of_N, data.advantages_R, section)

    def _is_beyond_limit(self, sums: dict[str, float]) -> bool:
        limit = find_exceeded_limit(sums, self.config.algorithm)
        if limit is None:
            return False
        if self.position.step == 0:
            raise self._ranks.join(limit.refuse(self.config.model.path))
        self._optimizer.discard_gradients()
        where = {"step": self.position.step, "epoch": self.position.epoch}
        self._metrics.write({"event": limit.name} | where | {limit.metric: limit.value})
        return True

    def _has_collapsed(self, record: dict[str, Any]) -> bool:
        """Judge a step's record, and measure what is due; whether the run is to end."""
        records, step = [record], self.position.step
        if self._watch.is_due(step):
            measure = partial(self._watch.measure, step, self.position.epoch)
            records.append(self._budget.run(measure, self.config))
            self._report_split(step)
            self._report(records[-1])
        for news in [news for judged in records for news in self._watch.judge(judged)]:
            self._report(news)
        return self._watch.stopped_by is not None

    def _score_held_back(self) -> bool:
        """Score runs of tasks held back; whether the run may go on."""
        step = self.position.step
        if self._watch.can_score(step):
            score = partial(self._watch.score_held_back, step, self.position.epoch)
            record = self._budget.run(score, self.config)
            self._report_split(step)
            self._report(record)
            for news in self._watch.judge(record):
                self._report(news)
        if self._watch.stopped_by is not None:
            self.position.finished = True
        return not self.position.finished

    def _commit_scored(self) -> bool:
        """Commit a checkpoint on the way, unless it has lost the good runs; whether the run may go on."""
        if self._score_held_back():
            self._commit()
        return not self.position.finished

    def _find_result(self, last: Path) -> Path:
        """The last checkpoint; where the run was stopped and has lost the good runs, one from before."""
        healthy = self._find_healthy()
        return last if self._watch.stopped_by is None or healthy is None else healthy

    def _report_rollback(self, result: Path, last: Path) -> None:
        """Say to which checkpoint the run went back, or that it could not."""
        where = {"step": self.position.step, "epoch": self.position.epoch}
        if result != last:
            self._report({"event": "rollback", **where, "checkpoint": result.name})
        elif self._watch.has_lost_good:
            self._report({"event": "no_rollback", **where, "checkpoint": last.name})

    def _find_healthy(self) -> Path | None:
        """The last checkpoint that was scored and had not lost the good runs; None: there is none."""
        return self.folder.find_healthy(self._watch.healthy_at, now=self.position.step)

    def _clip_gradients(self, trajectories: list[int]) -> float:
        grad_norm = self._optimizer.clip_gradients()
        if not math.isfinite(grad_norm):
            raise refuse_gradient(trajectories, grad_norm, **self._suspects())
        return grad_norm

    def _suspects(self) -> dict[str, Any]:
        """What finding the trajectories behind a loss or gradient that is no number needs."""
        return {
            "step": self.position.step,
            "policy": self.policy,
            "data": self.data,
            "objective": self.data.objective,
            "build_packs": lambda chosen: (
                self._budget.run(partial(self._build_step, chosen), self.config).packs
            ),
        }

    def _announce(self) -> None:
        if self.position.step:
            record = {"event": "resume", "step": self.position.step}
        else:
            sample = self._plan_epoch(0)[0]
            drift = self._budget.run(
                lambda config: measure_drift(self.policy, self.data, config, sample), self.config
            )
            record = {"event": "start", "logprob_drift_mean_abs": drift}
            record |= {
                "attention": self.policy.attention,
                "has_chat_template": bool(getattr(self.policy.tokenizer, "chat_template", None)),
            }
        if self._changes:
            record["changed"] = {key: list(pair) for key, pair in self._changes.items()}
        if self._ranks.size > 1:
            record["ranks"] = self._ranks.size
        self._report(record | self.data.facts | {"num_steps": self._total_steps})
        self._report_split(self.position.step)
        if self.position.step == 0:
            self._has_collapsed({})
            may_go_back = self._score_held_back() and self._watch.may_go_back
            if may_go_back and self.config.train.checkpoint_every_steps:
                self._commit()  # what it goes back to where its first checkpoint has lost the good runs

    def _report_split(self, step: int) -> None:
        if (news := self._budget.take_news()) is not None:
            self._report(news | {"step": step})

    def _report(self, record: dict[str, Any]) -> None:
        self._metrics.write(record)
        if self._ranks.is_first:
            self._progress(record)

    def _commit(self) -> Path:
        path = self.folder.name_checkpoint(self.position.step)
        if self._checkpoint == path:  # resumed, and nothing trained since
            return path
        tensors: dict[str, Tensor | Slice] = self._optimizer.snapshot()
        tensors |= self.data.kept
        if self._proximal is not None:
            flat_A = np.concatenate(self._proximal.logprobs_R)
            tensors[PROXIMAL] = torch.from_numpy(flat_A)
        if self.policy.lora:
            tensors |= {
                f"lora.{name}": take_slice(p) for name, p in self.policy.trained_parameters()
            }
        self._checkpoint = self.folder.save_checkpoint(
            self.policy,
            step=self.position.step,
            tensors=tensors,
            values={
                "step": self.position.step,
                "position": asdict(self.position),
                "tokens_per_pack": self._budget.found,
                "watch": self._watch.snapshot(),
                "behaviour_sha256": self.data.facts.get("behaviour_sha256"),
            },
            manifest=self.data.manifest,
            config=self.config,
            facts=self.data.facts,
            last_step=self._metrics.last_step,
            spared=self._find_healthy() if self.config.diagnostics.early_stop else None,
        )
        return self._checkpoint


def _require_same_data(checkpoint: Checkpoint, data: TrainingData) -> None:
    before = checkpoint.lineage["dataset"]["digest"]
    if before != data.manifest.digest:
        raise DataError(
            f"{data.manifest.path}: the dataset has changed since the run began (digest {before} "
            f"then, {data.manifest.digest} now); start a new run."
        )
    if checkpoint.values.get("behaviour_sha256") != data.facts.get("behaviour_sha256"):
        raise DataError(
            "data.behaviour: its log-probabilities are not those that the run began with; start a "
            "new run."
        )
