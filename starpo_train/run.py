"""RunConfig -> TrainResult: a new run, or one that goes on from its last checkpoint."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from starpo_train.changes import Changes, find_changes, require_same_run
from starpo_train.checkpoint import Checkpoint
from starpo_train.config import ModelSection, RunConfig
from starpo_train.dataset import has_version, read_manifest
from starpo_train.memory import PackBudget
from starpo_train.model import choose_device, load_policy
from starpo_train.policy import Policy
from starpo_train.prepare import prepare_training_data
from starpo_train.ranks import ALONE, JointStop, Ranks, open_ranks, watch_ranks
from starpo_train.run_folder import RunFolder, find_result
from starpo_train.sharding import shard_policy
from starpo_train.signals import StopRequest
from starpo_train.trackers import require_trackers
from starpo_train.trainer import Progress, Trainer, TrainResult
from starpo_train.trainingdata import TrainingData


class Prepare(Protocol):
    """What makes a run's data of its configuration and of the model that it begins with."""

    def __call__(
        self, config: RunConfig, policy: Policy, *, kept: Mapping[str, Tensor] | None = None
    ) -> TrainingData:
        """`kept` is what an earlier life of the run asked of that model."""
        ...


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    prepare: Prepare | None = None,
) -> TrainResult:
    """Run the training that `config` describes, from its start or from its last checkpoint.

    Raises:
        ConfigError: the output folder holds another run, or the run's configuration was edited.
        DataError, ProvenanceError, ModelError: the run cannot start.
        TrainingError: a loss or gradient is not a number; names the trajectories.
        OutOfMemoryError: one row alone does not fit into memory; names its trajectory.
        CheckpointError: the checkpoint to resume from is damaged.
        KeyboardInterrupt: SIGINT or SIGTERM before the first step, or a second one.
    """
    if config.train.threads > 0:
        torch.set_num_threads(config.train.threads)
    folder = RunFolder(config.run.output, exclusive=True)
    with (
        closing(folder),
        open_ranks(device=config.model.device, timeout_s=config.train.rank_timeout_s) as ranks,
        StopRequest() as stop,
        watch_ranks(ranks),
    ):
        trainer = open_trainer(
            config, resume=resume, progress=progress, ranks=ranks, prepare=prepare, folder=folder
        )
        stop.begin()
        return trainer.run(stop if ranks.size == 1 else JointStop(stop, ranks))


def open_trainer(
    config: RunConfig,
    *,
    resume: bool,
    progress: Progress | None,
    ranks: Ranks = ALONE,
    prepare: Prepare | None = None,
    folder: RunFolder | None = None,
) -> Trainer:
    """Load what a new or a resumed run needs."""
    ranks.share(lambda: require_trackers(config.run.trackers))
    folder = folder or RunFolder(config.run.output)
    prepare = prepare or prepare_training_data
    changes: Changes = {}
    if resume:
        checkpoint = folder.claim(config, resume=True, ranks=ranks)
        if checkpoint is not None:
            changes = find_changes(checkpoint, config)
            result = find_result(folder.path)
            ranks.agree(partial(require_same_run, changes, checkpoint, config, result=result))
        policy = ranks.agree(lambda: _load_resumed_policy(config, checkpoint, ranks))
        if checkpoint is not None:
            config = _pin_dataset(config, checkpoint)
        kept = checkpoint.tensors if checkpoint else None
        found = checkpoint.values.get("tokens_per_pack") if checkpoint else None
        found = None if "train.tokens_per_pack" in changes else found  # to be tried anew
        budget = PackBudget(config.train.tokens_per_pack, found=found)
        data = ranks.agree(lambda: budget.run(partial(prepare, policy=policy, kept=kept), config))
    else:
        policy = ranks.agree(lambda: _load_sharded_policy(config.model, config.run.seed, ranks))
        budget = PackBudget(config.train.tokens_per_pack)
        data = ranks.agree(lambda: budget.run(partial(prepare, policy=policy), config))
        # only after the data was found usable
        checkpoint = folder.claim(config, resume=False, ranks=ranks)
    return Trainer(
        config,
        policy=policy,
        data=data,
        folder=folder,
        budget=budget,
        checkpoint=checkpoint,
        changes=changes,
        progress=progress,
    )


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
