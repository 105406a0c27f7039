"""TrainingData + Policy -> checkpoints and metrics.

StarPO here is offline: PPO's clipped objective over whole logged trajectories, with the recorded
log-probabilities as the behaviour policy throughout; nothing is sampled. A step is a number of
trajectories; its packs share one set of denominators, so packing cannot change the loss.

Suffix: A trained tokens of a pack.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starpo_train.blame import refuse_gradient, refuse_loss
from starpo_train.checkpoint import Checkpoint
from starpo_train.config import ModelSection, RunConfig
from starpo_train.dataset import has_version, read_manifest
from starpo_train.errors import DataError
from starpo_train.memory import PackBudget, explain_out_of_memory
from starpo_train.model import Policy, choose_device, load_policy
from starpo_train.optimizer import Optimizer
from starpo_train.prepare import TrainingData, prepare_training_data
from starpo_train.ranks import ALONE, JointStop, Ranks, open_ranks, watch_ranks
from starpo_train.run_folder import RunFolder
from starpo_train.sharding import shard_policy
from starpo_train.signals import StopRequest
from starpo_train.slices import Slice, take_slice
from starpo_train.step import StepPack, build_step_packs, compute_pack_loss, measure_drift
from starpo_train.trackers import open_metrics, require_trackers

Progress = Callable[[dict[str, Any]], None]
"""Called with the start record, then with each step's record and each event's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """Where a run ended."""

    final_path: Path
    """Folder of the last committed checkpoint."""
    num_steps: int
    metrics_path: Path
    interrupted: bool = False
    """Stopped by SIGINT or SIGTERM; resuming goes on."""
    already_finished: bool = False
    """Resumed, but there was nothing left to do."""


@dataclass(slots=True, kw_only=True)
class Position:
    """How far a run is: all that resuming needs beside tensors."""

    step: int = 0
    """Optimizer steps taken."""
    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    finished: bool = False


def train(
    config: RunConfig, *, resume: bool = False, progress: Progress | None = None
) -> TrainResult:
    """Run the training that `config` describes, from its start or from its last checkpoint.

    Raises:
        ConfigError: the output folder holds another run.
        DataError, ProvenanceError, ModelError: the run cannot start.
        TrainingError: a loss or gradient is not a number; names the trajectories.
        OutOfMemoryError: one row alone does not fit into memory; names its trajectory.
        CheckpointError: the checkpoint to resume from is damaged.
        KeyboardInterrupt: SIGINT or SIGTERM before the first step, or a second one.
    """
    if config.train.threads > 0:
        torch.set_num_threads(config.train.threads)
    with (
        open_ranks(device=config.model.device, timeout_s=config.train.rank_timeout_s) as ranks,
        watch_ranks(ranks),
        StopRequest() as stop,
    ):
        trainer = open_trainer(config, resume=resume, progress=progress, ranks=ranks)
        stop.begin()
        return trainer.run(stop if ranks.size == 1 else JointStop(stop, ranks))


def open_trainer(
    config: RunConfig, *, resume: bool, progress: Progress | None, ranks: Ranks = ALONE
) -> "Trainer":
    """Load what a new or a resumed run needs."""
    ranks.share(lambda: require_trackers(config.run.trackers))
    folder = RunFolder(config.run.output)
    if resume:
        checkpoint = folder.claim(config, resume=True, ranks=ranks)
        policy = ranks.agree(lambda: _load_resumed_policy(config, checkpoint, ranks))
        if checkpoint is not None:
            config = _pin_dataset(config, checkpoint)
        values = checkpoint.tensors.get("critic.values_K") if checkpoint else None
        found = checkpoint.values.get("tokens_per_pack") if checkpoint else None
        budget = PackBudget(config.train.tokens_per_pack, found=found)
        prepare = partial(prepare_training_data, policy=policy, critic_values_K=values)
        data = ranks.agree(lambda: budget.run(prepare, config))
    else:
        policy = ranks.agree(lambda: _load_sharded_policy(config.model, config.run.seed, ranks))
        budget = PackBudget(config.train.tokens_per_pack)
        prepare = partial(prepare_training_data, policy=policy)
        data = ranks.agree(lambda: budget.run(prepare, config))
        # only after the data was found usable
        checkpoint = folder.claim(config, resume=False, ranks=ranks)
    return Trainer(
        config,
        policy=policy,
        data=data,
        folder=folder,
        budget=budget,
        checkpoint=checkpoint,
        progress=progress,
    )


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
        progress: Progress | None = None,
    ) -> None:
        """Put the parts together; with a checkpoint, restore optimizer and position from it."""
        self.config = config
        self.policy = policy
        self.data = data
        self.folder = folder
        self.position = Position()
        self._budget = budget or PackBudget(config.train.tokens_per_pack)
        self._batches_per_epoch = math.ceil(
            len(data.rows_of_N) / config.train.trajectories_per_step
        )
        self._total_steps = config.train.epochs * self._batches_per_epoch
        self._optimizer = Optimizer(policy, config.train, total_steps=self._total_steps)
        if checkpoint is not None:
            _require_same_data(checkpoint, data)
            self._optimizer.restore(checkpoint.tensors)
            self.position = Position(**checkpoint.values["position"])
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

    def run(self, stop: StopRequest | JointStop) -> TrainResult:
        """Train to the end, or until `stop`; either way the last step is committed."""
        already_finished = self._checkpoint is not None and self._is_finished()
        try:
            if not already_finished:
                self._announce()
            while not self._is_finished() and not stop.requested:
                self._train_epoch(stop)
            final = self._commit()
            if self._is_finished() and self._ranks.is_first:
                self.folder.write_final(final, step=self.position.step)
        finally:
            self._metrics.close()
        return TrainResult(
            final_path=final,
            num_steps=self.position.step,
            metrics_path=self.folder.metrics_path,
            interrupted=not self._is_finished(),
            already_finished=already_finished,
        )

    def _is_finished(self) -> bool:
        return self.position.finished or self.position.epoch >= self.config.train.epochs

    def _train_epoch(self, stop: StopRequest | JointStop) -> None:
        """What is left of an epoch; it ends early at the KL ceiling or when asked to stop."""
        position, every = self.position, self.config.train.checkpoint_every_steps
        batches = self._plan_epoch(position.epoch)
        while position.batch < len(batches):
            record = self.train_step(batches[position.batch])
            if record is None:  # above the ceiling; at an epoch's first batch, so would be the rest
                position.finished = position.batch == 0
                break
            position.batch += 1
            self._report(record)
            if position.batch == len(batches):
                break
            if stop.requested:
                return
            if every and position.step % every == 0:
                self._commit()
        position.epoch, position.batch = position.epoch + 1, 0
        if every and position.step % every == 0 and not self._is_finished():
            self._commit()

    def train_step(self, trajectories: list[int]) -> dict[str, Any] | None:
        """One optimizer step on some trajectories; None when the KL ceiling forbids it."""
        started = time.perf_counter()
        sums = self._budget.run(
            lambda config: self._accumulate_gradients(self._build_packs(trajectories, config)),
            self.config,
            undo=self._optimizer.discard_gradients,
        )
        self._report_split(self.position.step + 1)
        if self._is_above_kl_ceiling(sums):
            return None
        grad_norm = self._clip_gradients(trajectories)
        learning_rate = self._optimizer.apply(self.position.step)
        self.position.step += 1
        return self._summarize(
            sums,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            wall_s=time.perf_counter() - started,
        )

    def _plan_epoch(self, epoch: int) -> list[list[int]]:
        """Trajectories of each step of an epoch; depends on seed and epoch only."""
        order = np.random.default_rng([self.config.run.seed, epoch]).permutation(
            len(self.data.rows_of_N)
        )
        if self.config.train.order == "tasks":  # tasks in the order of their first attempt
            order = gather_tasks(order, self.data.task_of_N)
        return [part.tolist() for part in np.array_split(order, self._batches_per_epoch)]

    def _build_packs(
        self, trajectories: list[int], config: RunConfig | None = None
    ) -> list[StepPack]:
        config = config or self.config
        return build_step_packs(
            self.data,
            config,
            trajectories,
            shared_up_to=self.policy.shared_up_to,
            tokens_per_pack=self.policy.limit_pack(config.train.tokens_per_pack),
            ranks=self._ranks,
        )

    def _accumulate_gradients(self, packs: list[StepPack]) -> dict[str, float]:
        """Forward and backward of every pack; sums over the step's trained tokens."""
        totals: dict[str, Tensor] = {}
        suspect_rows: list[int] = []
        for pack in packs:
            with explain_out_of_memory(pack.batch, self.data.name_row):
                output, entropies_A = compute_pack_loss(self.policy, pack, self.config.algorithm)
                if not torch.isfinite(output.loss):
                    suspect_rows += pack.batch.rows_R
                output.loss.backward()
            sums = output.sums | {
                "loss": output.loss.detach().double(),
                "entropy": entropies_A.detach().double().sum(),
            }
            if pack.advantages_A is not None:
                sums["advantage_abs"] = pack.advantages_A.abs().double().sum()
            for name, value in sums.items():
                totals[name] = totals[name] + value if name in totals else value
        sums = self._ranks.sum(
            {
                "num_tokens": sum(pack.batch.num_row_tokens for pack in packs),
                "num_computed": sum(pack.batch.num_tokens for pack in packs),
                "num_actions": sum(pack.batch.num_actions for pack in packs),
            }
            | {name: float(value) for name, value in totals.items()}
        )
        if not math.isfinite(sums["loss"]):
            raise refuse_loss(suspect_rows, sums["loss"], **self._suspects())
        return sums

    def _is_above_kl_ceiling(self, sums: dict[str, float]) -> bool:
        ceiling = self.config.algorithm.kl_ceiling
        if ceiling is None or "kl" not in sums:
            return False
        divergence = sums["kl"] / sums["num_actions"]
        if divergence <= ceiling:
            return False
        if self.position.step == 0:
            error = DataError(
                f"KL(behaviour | {self.config.model.path}) = {divergence:.4g} nats/token before "
                f"the first step, above algorithm.kl_ceiling = {ceiling}; start from the model "
                "that was recorded, or raise the ceiling."
            )
            raise self._ranks.join(error)
        self._optimizer.discard_gradients()
        self._metrics.write(
            {
                "event": "kl_ceiling",
                "step": self.position.step,
                "epoch": self.position.epoch,
                "approx_kl": divergence,
            }
        )
        return True

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
            "algorithm": self.config.algorithm,
            "build_packs": lambda chosen: self._budget.run(
                partial(self._build_packs, chosen), self.config
            ),
        }

    def _summarize(
        self, sums: dict[str, float], *, grad_norm: float, learning_rate: float, wall_s: float
    ) -> dict[str, Any]:
        count = sums["num_actions"]
        record: dict[str, Any] = {
            "step": self.position.step,
            "epoch": self.position.epoch,
            "loss": sums["loss"],
            "entropy": sums["entropy"] / count,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "tokens": int(sums["num_tokens"]),
            "computed_tokens": int(sums["num_computed"]),
            "action_tokens": int(count),
            "tokens_per_s": sums["num_tokens"] / wall_s,
            "wall_s": wall_s,
            "algorithm": self.data.choice.algorithm,
        }
        if "kl" in sums:
            record |= {
                "clip_fraction": sums["clipped"] / count,
                "approx_kl": sums["kl"] / count,
                "ess_fraction": sums["ratio"] ** 2 / (count * sums["ratio_squared"]),
                "advantage_mean_abs": sums["advantage_abs"] / count,
            }
        return record

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
        if self._ranks.size > 1:
            record["ranks"] = self._ranks.size
        self._report(record | self.data.facts | {"num_steps": self._total_steps})
        self._report_split(self.position.step)

    def _report_split(self, step: int) -> None:
        if (news := self._budget.take_news()) is not None:
            self._report(news | {"step": step})

    def _report(self, record: dict[str, Any]) -> None:
        self._metrics.write(record)
        if self._ranks.is_first:
            self._progress(record)

    def _commit(self) -> Path:
        path = self.folder.checkpoints_path / f"step_{self.position.step:06d}"
        if self._checkpoint == path:  # resumed, and nothing trained since
            return path
        tensors: dict[str, Tensor | Slice] = self._optimizer.snapshot()
        if self.data.critic_values_K is not None:
            tensors["critic.values_K"] = self.data.critic_values_K
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
            },
            manifest=self.data.manifest,
            config=self.config,
            facts=self.data.facts,
            last_step=self._metrics.last_step,
        )
        return self._checkpoint


def gather_tasks(order: np.ndarray, task_of_N: np.ndarray) -> np.ndarray:
    """Trajectories in some order -> attempts at one task together, where its first one was."""
    first_of = {task: place for place, task in reversed(list(enumerate(task_of_N[order])))}
    return order[np.argsort([first_of[task] for task in task_of_N[order]], kind="stable")]


def _pin_dataset(config: RunConfig, checkpoint: Checkpoint) -> RunConfig:
    """A run goes on with the version of the dataset that it began with, as long as that is kept."""
    dataset = config.data.dataset
    digest = checkpoint.lineage["dataset"]["digest"]
    if not has_version(dataset, digest) or read_manifest(dataset).digest == digest:
        return config
    pinned = dataset.with_name(f"{dataset.name}@{digest}")
    return replace(config, data=replace(config.data, dataset=pinned))


def _load_sharded_policy(
    section: ModelSection, seed: int, ranks: Ranks, lora: Mapping[str, Tensor] | None = None
) -> Policy:
    policy = load_policy(section, seed=seed, ranks=ranks)
    if lora is not None:
        with torch.no_grad():
            for name, parameter in policy.trained_parameters():
                parameter.copy_(lora[f"lora.{name}"])
    return shard_policy(policy, choose_device(section.device, ranks))


def _load_resumed_policy(config: RunConfig, checkpoint: Checkpoint | None, ranks: Ranks) -> Policy:
    section: ModelSection = config.model
    if checkpoint is not None and section.lora_rank == 0:
        section = replace(section, path=str(checkpoint.path))
    lora = checkpoint.tensors if checkpoint is not None and section.lora_rank else None
    return _load_sharded_policy(section, config.run.seed, ranks, lora)


def _require_same_data(checkpoint: Checkpoint, data: TrainingData) -> None:
    before = checkpoint.lineage["dataset"]["digest"]
    if before != data.manifest.digest:
        raise DataError(
            f"{data.manifest.path}: the dataset has changed since the run began (digest {before} "
            f"then, {data.manifest.digest} now); start a new run."
        )
