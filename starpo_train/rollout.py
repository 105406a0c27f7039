"""Checkpoint + agent file -> recorded runs -> dataset and summary.

The checkpoint is served in a process of its own; this process runs the agent (`agentfile.py`).

Every run is a trajectory in `OUTPUT/traces`. What already has its reward there is not played
again, so an interrupted evaluation goes on where it was.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl

import starpo_trace
from starpo_trace.convert.dataset import build_dataset
from starpo_train.agentfile import Attempt, list_attempts, load_agent
from starpo_train.dataset import scan_table
from starpo_train.errors import ConfigError, RolloutError
from starpo_train.modelfolder import require_model
from starpo_train.serve.process import ServerProcess
from starpo_train.stats import estimate_mean
from starpo_train.tomlfile import read_config
from starpo_train.wholefile import write_atomically

logger = logging.getLogger(__name__)

SUCCESS_REWARD = 0.5
"""A reward from here on counts as a success, as in the gate's default."""
SUMMARY_FILE = "summary.json"
CLAIM_FILE = "evaluation.json"

_IDENTITY = ("agent", "model", "policy_id", "split", "seed")
"""What all runs in one output folder have in common."""

_FLUSH_TIMEOUT_S = 30.0
_MOST_FAILURES = 8
"""Runs that may fail in the agent's code before the evaluation stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSection:
    """Who plays what, how often, and where it is kept."""

    agent: Path
    """The agent's Python file."""
    model: str
    """Model folder to serve, or the name of a model in the hub's local cache."""
    output: Path
    """Folder for traces, dataset and summary."""
    policy_id: str
    """Which policy this is, in the traces and in reports."""
    split: str = "test"
    """Passed to the agent's `tasks`."""
    tasks: int = 100
    attempts: int = 4
    """Runs of each task, each with its own seed."""
    concurrency: int = 16
    """Runs at the same time, and rows the server decodes at once."""
    seed: int = 0
    """Chooses the tasks and, with task and attempt, each run's own seed."""
    threads: int = 1
    """Torch threads of the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """One evaluation file: the table `[evaluate]`."""

    evaluate: EvaluateSection

    def __post_init__(self) -> None:
        """Refuse counts that nothing could be done with."""
        for key in ("tasks", "attempts", "concurrency", "threads"):
            value = getattr(self.evaluate, key)
            if value < 1:
                raise ConfigError(f"evaluate.{key} = {value}: must be at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an evaluation is."""

    stage: str
    """server | play | dataset | done."""
    num_done: int = 0
    """Runs with a reward, those of an earlier start included."""
    num_runs: int = 0
    num_successes: int = 0
    num_failed: int = 0
    """Runs that raised in the agent's code; another start plays them again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateResult:
    """What an evaluation found."""

    dataset: Path
    summary_path: Path
    summary: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class _Tally:
    """Counts over the finished runs."""

    num_done: int = 0
    num_successes: int = 0
    errors: list[BaseException] = field(default_factory=list)


def read_evaluate_config(path: Path) -> EvaluateConfig:
    """Evaluation file -> config; relative paths resolve against the file's folder.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or an unusable value.
    """
    return read_config(path, EvaluateConfig, kind="evaluation file")


def evaluate(
    config: EvaluateConfig, *, progress: Callable[[Progress], None] | None = None
) -> EvaluateResult:
    """Play what is not played yet, build the dataset, summarize it.

    Raises:
        ConfigError: the output folder holds another evaluation.
        ModelError, CheckpointError: the model is not there, or a checkpoint that is not whole.
        RolloutError: the agent file cannot be used, or its runs keep failing.
        ServerError: the model cannot be served, or the server died.
    """
    options = config.evaluate
    report = progress or (lambda _: None)
    traces, dataset = options.output / "traces", options.output / "dataset"
    require_model(options.model, where="evaluate.model")
    traces.mkdir(parents=True, exist_ok=True)
    claim_output(options)
    finished = read_finished(traces, dataset)
    starpo_trace.instrument(store=traces)  # first: the agent's own line then changes nothing
    try:
        agent = load_agent(options.agent)
        attempts = list_attempts(
            agent,
            options.agent,
            split=options.split,
            tasks=options.tasks,
            attempts=options.attempts,
            seed=options.seed,
        )
        left = [a for a in attempts if (a.task["id"], a.number) not in finished]
        wall_s = 0.0
        if left:
            report(Progress(stage="server", num_done=len(finished), num_runs=len(attempts)))
            log_path = options.output / "server.log"
            with ServerProcess(
                options.model,
                threads=options.threads,
                max_batch=options.concurrency,
                log_path=log_path,
            ) as server:
                started_s = time.monotonic()
                tally = _Tally(num_done=len(attempts) - len(left))
                tally.num_successes = sum(reward >= SUCCESS_REWARD for reward in finished.values())
                play_attempts(agent, left, options, server, tally, report)
                wall_s = time.monotonic() - started_s
        if not starpo_trace.flush(_FLUSH_TIMEOUT_S):
            raise RolloutError(
                f"{traces}: runs were played but not all could be written: {starpo_trace.stats()}; "
                "free some disk space and start again"
            )
    finally:
        starpo_trace.uninstrument()
    report(Progress(stage="dataset", num_done=len(attempts), num_runs=len(attempts)))
    build_dataset([traces], dataset)
    summary = summarize_runs(dataset, options, num_played=len(left), wall_s=wall_s)
    summary_path = options.output / SUMMARY_FILE
    write_atomically(summary_path, json.dumps(summary, indent=2) + "\n")
    report(Progress(stage="done", num_done=summary["num_rewarded"], num_runs=len(attempts)))
    return EvaluateResult(dataset=dataset, summary_path=summary_path, summary=summary)


def claim_output(options: EvaluateSection) -> None:
    """Write down whose runs the output folder holds, or check that they are this evaluation's.

    Raises:
        ConfigError: they are another agent's, model's, policy's, split's or seed's.
    """
    path = options.output / CLAIM_FILE
    mine = {key: str(getattr(options, key)) for key in _IDENTITY}
    if not path.exists():
        path.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")
        return
    theirs = json.loads(path.read_text(encoding="utf-8"))
    for key, value in mine.items():
        if theirs.get(key) != value:
            raise ConfigError(
                f"{options.output}: holds runs with {key} = {theirs.get(key)!r}, not {value!r}; "
                "choose another evaluate.output, or remove the folder"
            )


def read_finished(traces: Path, dataset: Path) -> dict[tuple[str, int], float]:
    """(task id, attempt) -> reward of every run in the store that has one."""
    if not any(traces.iterdir()):
        return {}
    try:
        build_dataset([traces], dataset)
    except ValueError as error:  # a start that was killed before its first span was written
        logger.warning("%s: nothing readable yet (%s); every run is played", traces, error)
        return {}
    rows = (
        scan_table(dataset, "trajectories")
        .filter(pl.col("reward").is_not_null() & pl.col("attempt").is_not_null())
        .select("task_id", "attempt", "reward")
        .collect()
    )
    return {(task, attempt): reward for task, attempt, reward in rows.iter_rows()}


def play_attempts(
    agent: ModuleType,
    attempts: list[Attempt],
    options: EvaluateSection,
    server: ServerProcess,
    tally: _Tally,
    report: Callable[[Progress], None],
) -> None:
    """Play on `concurrency` threads; stops early when the server is gone or runs keep failing."""
    import openai

    client = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=600.0)
    num_runs = tally.num_done + len(attempts)
    stop = threading.Event()

    def play(attempt: Attempt) -> float | None:
        return None if stop.is_set() else play_attempt(agent, client, attempt, options)

    pool = ThreadPoolExecutor(options.concurrency, thread_name_prefix="starpo-play")
    try:
        pending = {pool.submit(play, attempt) for attempt in attempts}
        while pending:
            finished, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in finished:
                _count(future, tally)
            server.check()
            report(
                Progress(
                    stage="play",
                    num_done=tally.num_done,
                    num_runs=num_runs,
                    num_successes=tally.num_successes,
                    num_failed=len(tally.errors),
                )
            )
            if len(tally.errors) >= _MOST_FAILURES:
                raise RolloutError(
                    f"{options.agent}: {len(tally.errors)} runs failed, the last with "
                    f"{tally.errors[-1]!r}; finished runs are kept, start again to go on"
                ) from tally.errors[-1]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        client.close()


def _count(future: Future[float | None], tally: _Tally) -> None:
    error = future.exception()
    if error is not None:
        tally.errors.append(error)
        return
    reward = future.result()
    if reward is not None:
        tally.num_done += 1
        tally.num_successes += reward >= SUCCESS_REWARD


def play_attempt(
    agent: ModuleType, client: Any, attempt: Attempt, options: EvaluateSection
) -> float:
    """One run, recorded as a trajectory -> its reward."""
    with starpo_trace.trajectory(
        options.agent.stem,
        task_id=attempt.task["id"],
        attempt=attempt.number,
        seed=attempt.seed,
        policy_id=options.policy_id,
        environment_name=getattr(agent, "ENVIRONMENT_NAME", None),
        cohort=attempt.task.get("cohort"),
    ) as trajectory:
        result = agent.play(client, options.model, attempt.task, attempt.seed)
        reward = float(result["reward"])
        starpo_trace.reward(reward)
        trajectory.end(result.get("end", "terminated"))
    return reward


def summarize_runs(
    dataset: Path, options: EvaluateSection, *, num_played: int, wall_s: float
) -> dict[str, Any]:
    """Dataset -> the figures of `summary.json`; null where nothing is known."""
    rows = scan_table(dataset, "trajectories").filter(pl.col("reward").is_not_null()).collect()
    by_task = rows.group_by("task_id").agg((pl.col("reward") >= SUCCESS_REWARD).mean())
    success = estimate_mean(by_task["reward"].to_numpy()) if by_task.height else None
    tokens = rows.select((pl.col("input_tokens") + pl.col("output_tokens")).mean()).item()
    turns = rows["num_turns"].sum()
    return {
        "policy_id": options.policy_id,
        "model": options.model,
        "split": options.split,
        "seed": options.seed,
        "num_tasks": by_task.height,
        "attempts": options.attempts,
        "num_rewarded": rows.height,
        "num_missing": options.tasks * options.attempts - rows.height,
        "success_mean": success.value if success else None,
        "success_ci95": [success.low, success.high] if success and by_task.height > 1 else None,
        "reward_mean": rows["reward"].mean(),
        "tokens_per_trace_mean": tokens,
        "steps_mean": rows["num_steps"].mean(),
        "steps_p95": rows["num_steps"].quantile(0.95, "higher"),
        "ends": dict(sorted(Counter(rows["end"].to_list()).items())),
        "usable_for": dict(sorted(Counter(rows["usable_for"].to_list()).items())),
        "runs_played": num_played,
        "play_seconds": round(wall_s, 1),
        "runs_per_s": round(num_played / wall_s, 2) if wall_s else None,
        "turns_mean": turns / rows.height if rows.height else None,
    }
