"""Trajectories of a closed model -> estimates of its log-probabilities, from models fitted to them.

Cross-fitted: the data is dealt into folds of whole trajectories, and each fold is scored by a model
that was fitted, by plain cloning, to all the others, good and bad. What comes of it is `estimated`
wherever it goes.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from starpo_train.behaviour.settings import BehaviourConfig
from starpo_train.behaviour.table import TurnLogprobs, write_behaviour
from starpo_train.behaviour.turns import (
    Calibration,
    describe_dataset,
    measure_calibration,
    split_by_turn,
)
from starpo_train.config import (
    AlgorithmSection,
    DataSection,
    DiagnosticsSection,
    RunConfig,
    RunSection,
    read_run_config,
)
from starpo_train.credit.assign import TokenizedTrajectories, keep_trajectories
from starpo_train.dataset import Trajectory, read_manifest, read_trajectories
from starpo_train.errors import ConfigError, DataError
from starpo_train.leftout import LeftOut
from starpo_train.model import load_policy
from starpo_train.modelfolder import hash_weights
from starpo_train.objective import Objective
from starpo_train.policy import Policy
from starpo_train.provenance import Choice
from starpo_train.ranks import read_ranks
from starpo_train.rows import tokenize_trajectories
from starpo_train.run import train
from starpo_train.run_folder import RunFolder
from starpo_train.scoring import RowScores, score_rows
from starpo_train.targets import number_tasks
from starpo_train.trainer import Progress
from starpo_train.trainingdata import TrainingData

Announce = Callable[[str], None]
"""Called with a line before each part of the work."""


def fit_behaviour(
    config: BehaviourConfig, *, announce: Announce, progress: Progress | None = None
) -> list[Calibration]:
    """Fit, score, write the folder; a second call goes on where the first was stopped.

    Raises:
        ConfigError: the folder holds another dataset's, or several processes were started.
        DataError: too few trajectories have content.
        KeyboardInterrupt: stopped; what was fitted so far is kept.
    """
    section = config.behaviour
    if read_ranks().size > 1:
        raise ConfigError("starpo-train behaviour runs in one process; start it without torchrun.")
    section.output.mkdir(parents=True, exist_ok=True)
    trajectories = [
        t for t in read_trajectories(section.dataset, split=section.split) if t.usable_for != "none"
    ]
    if len(trajectories) < section.folds:
        raise DataError(
            f"{section.dataset}: {len(trajectories)} trajectories have content, fewer than "
            f"behaviour.folds = {section.folds}."
        )
    policy = load_policy(config.model, seed=section.seed)
    left_out = LeftOut()
    tokenized = _tokenize(config, policy, trajectories, left_out)
    start = _score(config, policy, tokenized, range(len(tokenized.rows)))
    fold_of_N = _deal_folds(len(tokenized.trajectories), section.folds, seed=section.seed)
    turns: list[TurnLogprobs] = []
    fitted = RowScores(logprobs_R=list(start.logprobs_R), entropies_R=list(start.entropies_R))
    for fold in range(section.folds):
        announce(f"fold {fold + 1} of {section.folds}")
        held = np.flatnonzero(fold_of_N == fold).tolist()
        folder = _fit(config, fold, np.flatnonzero(fold_of_N != fold).tolist(), progress)
        policy = load_policy(replace(config.model, path=str(folder), lora_rank=0))
        rows = [r for n in held for r in tokenized.rows_of_N[n]]
        scores = _score(config, policy, tokenized, rows)
        for r in rows:
            fitted.logprobs_R[r], fitted.entropies_R[r] = (
                scores.logprobs_R[r],
                scores.entropies_R[r],
            )
            trajectory = trajectories[tokenized.rows[r].trajectory]
            turns += split_by_turn(trajectory, tokenized.rows[r], scores.logprobs_R[r])
    measured = (
        measure_calibration(trajectories, tokenized.rows, scores.logprobs_R, scores.entropies_R)
        for scores in (start, fitted)
    )
    before, after = measured
    write_behaviour(
        section.output,
        turns,
        provenance="estimated",
        facts={
            "method": "fit",
            "dataset": describe_dataset(section),
            "model": {"path": config.model.path, "weights_sha256": hash_weights(config.model.path)},
            "folds": section.folds,
            "left_out": dict(left_out),
            "held_out": [asdict(c) | {"overconfidence": c.overconfidence} for c in after],
            "before_fitting": [asdict(c) for c in before],
        },
    )
    return after


def _tokenize(
    config: BehaviourConfig,
    policy: Policy,
    trajectories: list[Trajectory],
    left_out: LeftOut,
) -> TokenizedTrajectories:
    tokenized = tokenize_trajectories(
        trajectories,
        _read_data(config),
        policy,
        model_path=config.model.path,
        left_out=left_out,
        findings=Counter(),
    )
    if len(tokenized.trajectories) < config.behaviour.folds:
        raise DataError(
            f"{config.behaviour.dataset}: {len(tokenized.trajectories)} trajectories are left to fit "
            f"as behaviour.folds = {config.behaviour.folds} parts:{left_out.explain()}"
        )
    return tokenized


def _read_data(config: BehaviourConfig) -> DataSection:
    section = config.behaviour
    return DataSection(
        dataset=section.dataset,
        split=section.split,
        models=section.models,
        lossy_rendering=section.lossy_rendering,
    )


def _score(
    config: BehaviourConfig, policy: Policy, tokenized: TokenizedTrajectories, rows: Sequence[int]
) -> RowScores:
    return score_rows(
        policy,
        tokenized.rows,
        tokens_per_pack=config.train.tokens_per_pack,
        name_row=tokenized.name_row,
        chosen=rows,
    )


def _deal_folds(num_trajectories: int, num_folds: int, *, seed: int) -> np.ndarray:
    """int64 [N]: folds of equal size, at random."""
    order = np.random.default_rng(seed).permutation(num_trajectories)
    fold_of_N = np.empty(num_trajectories, dtype=np.int64)
    fold_of_N[order] = np.arange(num_trajectories) % num_folds
    return fold_of_N


def _fit(config: BehaviourConfig, fold: int, chosen: list[int], progress: Progress | None) -> Path:
    """Clone these trajectories; the checkpoint's folder, also that of an earlier call."""
    run = RunConfig(
        run=RunSection(
            output=config.behaviour.output / _name_fold(fold, chosen), seed=config.behaviour.seed
        ),
        data=_read_data(config),
        model=config.model,
        algorithm=AlgorithmSection(name="filtered_bc", aggregation="token-mean"),
        train=config.train,
        diagnostics=DiagnosticsSection(early_stop=False, held_back=0),  # all folds are fitted alike
    )
    folder = RunFolder(run.run.output)
    resume = folder.config_path.is_file()
    if resume and read_run_config(folder.config_path) != run:
        raise ConfigError(
            f"{folder.path}: was begun with other settings; choose "
            "another behaviour.output, or remove this one."
        )
    result = train(run, resume=resume, progress=progress, prepare=partial(_prepare, chosen=chosen))
    if result.interrupted:
        raise KeyboardInterrupt
    return result.final_path


def _name_fold(fold: int, chosen: list[int]) -> str:
    """Folder of a fit, by what it is fitted to: another division of the data is another fit."""
    digest = blake2b(",".join(map(str, chosen)).encode(), digest_size=4).hexdigest()
    return f"fold_{fold}_{digest}"


def _prepare(
    config: RunConfig,
    policy: Policy,
    *,
    chosen: list[int],
    kept: Mapping[str, Tensor] | None = None,
) -> TrainingData:
    """Every trajectory of the other folds, whatever it was worth."""
    everything = [
        t
        for t in read_trajectories(config.data.dataset, split=config.data.split)
        if t.usable_for != "none"
    ]
    tokenized = tokenize_trajectories(
        everything,
        config.data,
        policy,
        model_path=config.model.path,
        left_out=LeftOut(),
        findings=Counter(),
    )
    is_chosen_N = np.isin(np.arange(len(tokenized.trajectories)), chosen)
    tokenized, _ = keep_trajectories(tokenized, [], is_chosen_N.tolist())
    num_chosen = len(tokenized.trajectories)
    facts: dict[str, Any] = {
        "algorithm": "filtered_bc",
        "algorithm_reason": "the behaviour policy is cloned as it was",
        "num_trajectories": num_chosen,
        "num_trajectories_read": len(everything),
        "num_rows": len(tokenized.rows),
        "num_tokens": sum(row.num_tokens for row in tokenized.rows),
        "num_action_tokens": sum(row.num_actions for row in tokenized.rows),
        "left_out": {},
    }
    return TrainingData(
        manifest=read_manifest(config.data.dataset),
        choice=Choice(algorithm="filtered_bc", reason=facts["algorithm_reason"]),
        objective=Objective(algorithm="filtered_bc", section=config.algorithm),
        trajectory_ids_N=[t.trajectory_id for t in tokenized.trajectories],
        task_of_N=number_tasks(tokenized),
        rows=tokenized.rows,
        rows_of_N=tokenized.rows_of_N,
        rewards_N=np.array([t.reward or 0.0 for t in tokenized.trajectories]),
        kept={},
        facts=facts,
    )
