"""Scores -> late rewards in a trace store, through starpo_trace's public writer.

The judge's words go along, its id and its prompt's hash; a signature covers the digest of the pin. A
reward that is written again, by a run that goes on, replaces itself.
"""

from collections.abc import Sequence
from pathlib import Path

import starpo_trace
from starpo_train.errors import ConfigError, JudgeError
from starpo_train.judge.records import JudgeItem, JudgeScore
from starpo_train.judge.rubric import Rubric

_FLUSH_TIMEOUT_S = 30.0
_FLUSHED_AT_ONCE = 256


def write_rewards(
    store: Path,
    judged: Sequence[tuple[JudgeItem, JudgeScore]],
    rubric: Rubric,
    *,
    name: str,
    must_sign: bool = False,
) -> int:
    """Write a reward for each score of a trajectory or turn -> how many; items without a score have none.

    Raises:
        ConfigError: this process records an agent already.
        JudgeError: not all of them are on disk.
    """
    if starpo_trace.stats():
        raise ConfigError(
            "rewards.store: this process records an agent; judge in a process of its own."
        )
    starpo_trace.instrument(store=store)
    num_written = 0
    try:
        for item, score in judged:
            if score.score is None or item.trajectory_id is None:
                continue
            if item.turn is not None and item.step is None:
                continue  # a reward of a turn needs its step
            starpo_trace.reward(
                score.score,
                name=name,
                scope="trajectory" if item.turn is None else "turn",
                source="judge",
                min=rubric.low,
                max=rubric.high,
                explanation=score.reason,
                trajectory_id=item.trajectory_id,
                step=item.step,
                task_id=item.task_id,
                judge_id=score.judge_id,
                judge_prompt_hash=score.judge_prompt_hash,
                verifier_digest=f"sha256:{score.pin.digest}",
                sign=True if must_sign else None,
            )
            num_written += 1
            if num_written % _FLUSHED_AT_ONCE == 0:
                starpo_trace.flush(_FLUSH_TIMEOUT_S)
        is_flushed = starpo_trace.flush(_FLUSH_TIMEOUT_S)
        counts = starpo_trace.stats()
    finally:
        starpo_trace.uninstrument()
    if num_written and (not is_flushed or counts.get("acknowledged", 0) < num_written):
        raise JudgeError(
            f"{store}: {counts.get('acknowledged', 0)} of {num_written} rewards are on disk; "
            "check the store and the key that signs, and start again."
        )
    return num_written
