"""Records of a run, one by one -> measurements beside them, and whether the run should stop.

Suffixes: N sampled answers, U distinct prompts.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from starpo_train.config import RunConfig
from starpo_train.diagnostics.early_stop import (
    Finding,
    Window,
    extend_history,
    judge_history,
)
from starpo_train.diagnostics.mi_proxy import (
    RETRIEVAL_RANKS,
    compute_zscore,
    measure_information,
    measure_retrieval,
    update_ema,
)
from starpo_train.diagnostics.sampling import AnswerSample, sample_answers
from starpo_train.diagnostics.scoring import CrossScores, score_crosswise
from starpo_train.diagnostics.unlearning import measure_logprobs, summarize_change
from starpo_train.diagnostics.variance import compute_deviations, measure_step_deviation
from starpo_train.policy import Policy
from starpo_train.trainingdata import TrainingData


class Watch:
    """What a run has shown so far, and which rules it has broken."""

    def __init__(
        self,
        config: RunConfig,
        *,
        policy: Policy,
        data: TrainingData,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """`state` is what `snapshot` gave at the checkpoint that the run goes on from."""
        state = state or {}
        self._section = config.diagnostics
        self._seed = config.run.seed
        self._policy = policy
        self._data = data
        self._deviations_N = compute_deviations(data.rewards_N, data.task_of_N)
        self._history = {
            name: Window(
                first=tuple(window["first"]), last=tuple(window["last"]), count=window["count"]
            )
            for name, window in state.get("history", {}).items()
        }
        self._ema: dict[str, float] = dict(state.get("ema", {}))
        self._measured_at: int | None = state.get("measured_at")
        self._broken: list[str] = list(state.get("broken", ()))
        self._stopped_by: str | None = state.get("stopped_by")
        self._sample: AnswerSample | None = None
        self._scored_before: list[float] = list(state.get("scored_before", ()))
        self._scored_at: int | None = state.get("scored_at")
        self._healthy_at: int | None = state.get("healthy_at")
        self._may_conclude = False

    @property
    def stopped_by(self) -> str | None:
        """Rule that ended the run; None: none has."""
        return self._stopped_by

    @property
    def healthy_at(self) -> int | None:
        """Last step at which runs held back were scored and not found lost; None: there was none."""
        return self._healthy_at

    @property
    def may_go_back(self) -> bool:
        """Whether enough runs were just scored for a rule to say that the good ones are lost."""
        return self._section.early_stop and self._may_conclude

    @property
    def has_lost_good(self) -> bool:
        """Whether a stopped run has lost the good runs, as its last score says."""
        return self._stopped_by is not None and self._healthy_at != self._scored_at

    def snapshot(self) -> dict[str, Any]:
        """All that a resumed run needs to judge as this one would have."""
        return {
            "history": {name: asdict(window) for name, window in self._history.items()},
            "ema": self._ema,
            "measured_at": self._measured_at,
            "broken": self._broken,
            "stopped_by": self._stopped_by,
            "scored_before": self._scored_before,
            "scored_at": self._scored_at,
            "healthy_at": self._healthy_at,
        }

    def describe_step(self, trajectories: Sequence[int]) -> dict[str, float]:
        """What a step's record says of its data; nothing where rewards are not compared."""
        if self._data.choice.algorithm == "filtered_bc":
            return {}
        deviation = measure_step_deviation(self._deviations_N, self._data.task_of_N, trajectories)
        return {} if deviation is None else {"in_group_reward_std": deviation}

    def is_due(self, step: int) -> bool:
        """Whether mutual information is to be measured after a step, 0 being before the first."""
        every = self._section.every_steps
        return every > 0 and step % every == 0 and step != self._measured_at

    def measure(self, step: int, epoch: int, config: RunConfig) -> dict[str, Any]:
        """Record of how much answers depend on their prompts; every rank calls it.

        The turns are the same each time, so that only the policy changes between measurements.
        """
        started = time.perf_counter()
        record: dict[str, Any] = {"event": "diagnostics", "step": step, "epoch": epoch}
        self._measured_at = step
        if self._sample is None:
            self._sample = self._draw()
        answers = self._sample.answers
        if not answers:
            return record | {"num_answers": 0}
        scores = score_crosswise(
            self._policy,
            answers,
            tokens_per_pack=config.train.tokens_per_pack,
            name_answer=lambda i: self._data.trajectory_ids_N[answers[i].trajectory],
        )
        return (
            record
            | {"z": self._sample.kind, "num_answers": len(answers)}
            | summarize_scores(scores, self._ema)
            | {
                # other names than a step's own: trackers put both under one step
                "row_tokens": scores.num_row_tokens,
                "row_tokens_computed": scores.num_computed,
                "measured_in_s": time.perf_counter() - started,
            }
        )

    def can_score(self, step: int) -> bool:
        """Whether there are runs held back, with what they were before the first step, to be scored."""
        return (
            self._data.held_back is not None
            and step != self._scored_at
            and (step == 0 or bool(self._scored_before))
        )

    def score_held_back(self, step: int, epoch: int, config: RunConfig) -> dict[str, Any]:
        """Record of how likely runs of tasks held back are now; every rank calls it."""
        started = time.perf_counter()
        held_back = self._data.held_back
        assert held_back is not None  # noqa: S101 (`can_score` says so)
        now_N = measure_logprobs(
            self._policy, held_back, tokens_per_pack=config.train.tokens_per_pack
        )
        if step == 0:
            self._scored_before = now_N.tolist()
        self._scored_at = step
        return {
            "event": "held_back",
            "step": step,
            "epoch": epoch,
            **summarize_change(held_back, np.array(self._scored_before), now_N),
            "scored_in_s": time.perf_counter() - started,
        }

    def judge(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Remember the record of a step or measurement; records of rules newly broken.

        On several ranks all go by what rank 0 finds.
        """
        self._history = extend_history(self._history, record)
        found = [asdict(finding) for finding in judge_history(self._history, record)]
        found = [Finding(**values) for values in self._policy.ranks.gather(found)[0]]
        fresh = [finding for finding in found if finding.rule not in self._broken]
        if self._stopped_by is not None:  # the end of a run that a rule has stopped is scored, too
            fresh = []
        if self._section.early_stop and fresh:
            fresh = fresh[:1]
            self._stopped_by = fresh[0].rule
        self._broken += [finding.rule for finding in fresh]
        if record.get("event") == "held_back":
            self._may_conclude = record["good_lost_excess"] is not None
            if _has_good(record):
                self._healthy_at = record["step"]
        return [
            {
                "event": "early_stop" if self._section.early_stop else "alarm",
                "step": record["step"],
                "epoch": record["epoch"],
                "rule": finding.rule,
                "reason": finding.reason,
            }
            for finding in fresh
        ]

    def _draw(self) -> AnswerSample:
        longest = getattr(self._policy.model.config, "max_position_embeddings", None) or 1 << 62
        return sample_answers(
            self._data.rows,
            self._data.rows_of_N,
            self._policy.tokenizer,
            count=self._section.samples,
            seed=self._seed,
            longest=longest,
        )


def _has_good(record: Mapping[str, Any]) -> bool:
    """Whether runs held back were not found lost; a score that is no number is none."""
    excess = record["good_lost_excess"]
    return excess is None or excess <= 0.0


def summarize_scores(scores: CrossScores, ema: dict[str, float]) -> dict[str, Any]:
    """Cross scores -> a record's numbers; `ema` holds the smoothed deviations and is updated."""
    num_prompts = scores.logprobs_NU.shape[1]
    record: dict[str, Any] = {"num_prompts": num_prompts, "mi_limit": math.log(num_prompts)}
    per_token_NU = scores.logprobs_NU / scores.lengths_N[:, None]
    for unit, logprobs_NU in (("token", per_token_NU), ("sequence", scores.logprobs_NU)):
        found = measure_information(logprobs_NU, scores.prompt_of_N)
        ema[unit] = update_ema(ema.get(unit), found.marginal_std)
        record |= {
            f"mi_per_{unit}": found.mutual,
            f"matched_logprob_per_{unit}": found.matched,
            f"marginal_logprob_per_{unit}": found.marginal,
            f"mi_zscore_per_{unit}": compute_zscore(found.mutual, found.marginal_std),
            f"mi_zscore_ema_per_{unit}": compute_zscore(found.mutual, ema[unit]),
        }
    for rank in RETRIEVAL_RANKS:
        found = measure_retrieval(scores.logprobs_NU, scores.prompt_of_N, rank=rank)
        record |= {f"retrieval_at_{rank}": found.accuracy, f"chance_at_{rank}": found.chance}
    chance = record["chance_at_1"]
    noise = 2.0 * math.sqrt(chance * (1.0 - chance) / len(scores.prompt_of_N))
    entropy = float((scores.entropies_N / scores.lengths_N).mean())
    return record | {
        "retrieval_excess": record["retrieval_at_1"] - chance - noise,
        "answer_entropy": entropy,
        "answer_tokens": int(np.sum(scores.lengths_N.numpy())),
    }
