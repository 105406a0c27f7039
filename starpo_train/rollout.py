"""Policy + agent file or environment -> recorded runs -> dataset and summary.

A checkpoint is served in a process of its own, unless an endpoint serves it already; this process
plays (`players.py`).

Every run is a trajectory in `OUTPUT/traces`. What already has its reward there is not played
again, so an interrupted evaluation goes on where it was.
"""

import json
import logging
import sysconfig
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

import starpo_trace
from starpo_trace.convert.dataset import build_dataset
from starpo_trace.errors import DatasetError, SourceError
from starpo_train.attempts import Attempt
from starpo_train.dataset import scan_table
from starpo_train.environments.endpoint import Endpoint
from starpo_train.errors import ConfigError, RolloutError
from starpo_train.evaluation_claim import (
    claim_environment,
    claim_output,
    claim_weights,
    read_weights,
    write_tasks,
)
from starpo_train.evaluation_file import EvaluateConfig, EvaluateSection, read_evaluate_config
from starpo_train.folderlock import hold_folder
from starpo_train.gate.files import SUMMARY_FILE
from starpo_train.modelfolder import require_model
from starpo_train.players import Player, make_player
from starpo_train.serve.process import ServerProcess
from starpo_train.stats import estimate_success_rate
from starpo_train.wholefile import write_atomically

__all__ = ["EvaluateConfig", "EvaluateSection", "Progress", "evaluate", "read_evaluate_config"]

logger = logging.getLogger(__name__)

SUCCESS_REWARD = 0.5
"""A reward from here on counts as a success, as in the gate's default."""

_NOT_OWN = (
    str(Path(__file__).parent),
    str(Path(starpo_trace.__file__).parent),
    *set(sysconfig.get_paths().values()),
    "<",
)
"""Begins the names of files that are ours, Python's or installed."""
_FLUSH_TIMEOUT_S = 30.0
_MOST_FAILURES = 8
_FAILED_SHARE = 0.1
"""An evaluation stops once so many runs, and this share of those with a reward, failed."""


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


def evaluate(
    config: EvaluateConfig, *, progress: Callable[[Progress], None] | None = None
) -> EvaluateResult:
    """Play what is not played yet, build the dataset, summarize it.

    Raises:
        ConfigError: the output folder holds another evaluation, or other runs than are asked for, or
            another process plays it.
        ModelError, CheckpointError: the model is not there, or a checkpoint that is not whole.
        RolloutError: the agent file or environment cannot be used, its runs keep failing, or the process
            records elsewhere already.
        ServerError: the model cannot be served, or the server died.
    """
    options = config.evaluate
    report = progress or (lambda _: None)
    traces, dataset = options.output / "traces", options.output / "dataset"
    if options.model is not None:
        require_model(options.model, where="evaluate.model")
    try:
        traces.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"evaluate.output = {options.output}: cannot be a folder ({error})"
        ) from None
    with hold_folder(options.output, doing="playing this evaluation"):
        return _evaluate(options, traces, dataset, report)


def _evaluate(
    options: EvaluateSection, traces: Path, dataset: Path, report: Callable[[Progress], None]
) -> EvaluateResult:
    has_runs = any(traces.iterdir())
    if starpo_trace.stats():  # counts of what is instrumented already
        raise RolloutError(
            "this process is instrumented already, and the runs would be recorded elsewhere; call "
            "`starpo_trace.uninstrument()` before `evaluate()`."
        )
    starpo_trace.instrument(store=traces)  # first: the agent's own line then changes nothing
    try:
        player = make_player(options)
        claim_output(options)
        claim_environment(options, player.environment[1])
        attempts = player.list_attempts()
        finished = read_finished(traces, dataset) if has_runs else {}
        _refuse_others(options, finished, attempts)
        write_tasks(options.output, attempts)
        left = [a for a in attempts if (a.task_id, a.number) not in finished]
        wall_s, tally = 0.0, _Tally(num_done=len(attempts) - len(left))
        if left:
            claim_weights(options, is_new=not finished)
            report(Progress(stage="server", num_done=len(finished), num_runs=len(attempts)))
            with serve_policy(options) as (endpoint, check):
                started_s = time.monotonic()
                tally.num_successes = sum(reward >= SUCCESS_REWARD for reward in finished.values())
                play_attempts(player, left, options, endpoint, check, tally, report)
                wall_s = time.monotonic() - started_s
            if tally.errors and not tally.num_done:
                raise _describe_failures(options, tally) from tally.errors[-1]
        if not starpo_trace.flush(_FLUSH_TIMEOUT_S):
            raise RolloutError(
                f"{traces}: runs were played but not all could be written: {starpo_trace.stats()}; "
                "free some disk space and start again"
            )
    finally:
        starpo_trace.uninstrument()
    report(Progress(stage="dataset", num_done=len(attempts), num_runs=len(attempts)))
    build_dataset([traces], dataset)
    summary = summarize_runs(
        dataset,
        options,
        environment=player.environment,
        failures=[str(error) or repr(error) for error in tally.errors],
        num_runs=len(attempts),
        num_played=len(left),
        wall_s=wall_s,
    )
    summary_path = options.output / SUMMARY_FILE
    write_atomically(summary_path, json.dumps(summary, indent=2) + "\n")
    report(Progress(stage="done", num_done=summary["num_rewarded"], num_runs=len(attempts)))
    return EvaluateResult(dataset=dataset, summary_path=summary_path, summary=summary)


@contextmanager
def serve_policy(options: EvaluateSection) -> Iterator[tuple[Endpoint, Callable[[], None]]]:
    """Where the policy is asked, and what raises when it is gone.

    Raises:
        ServerError: the model cannot be served.
    """
    if options.player != "model":  # nobody is asked
        yield Endpoint(base_url="http://127.0.0.1:9/v1", model=options.player), lambda: None
        return
    if options.endpoint is not None:
        yield options.endpoint.open(), lambda: None
        return
    assert options.model is not None  # noqa: S101
    with ServerProcess(
        options.model,
        threads=options.threads,
        max_batch=options.concurrency,
        log_path=options.output / "server.log",
    ) as server:
        yield Endpoint(base_url=server.base_url, model=options.model), server.check


def read_finished(traces: Path, dataset: Path) -> dict[tuple[str, int], float]:
    """(task id, attempt) -> reward of every run in the store that has one."""
    try:
        build_dataset([traces], dataset)
    except SourceError as error:  # a start that was killed before its first span was written
        logger.warning("%s: nothing readable yet (%s); every run is played", traces, error)
        return {}
    except DatasetError as error:  # playing all of them again would store each run twice
        raise RolloutError(f"what is played already cannot be read: {error}") from error
    rows = (
        scan_table(dataset, "trajectories")
        .filter(pl.col("reward").is_not_null() & pl.col("attempt").is_not_null())
        .select("task_id", "attempt", "reward")
        .collect()
    )
    return {(task, attempt): reward for task, attempt, reward in rows.iter_rows()}


def _refuse_others(
    options: EvaluateSection, finished: Mapping[tuple[str, int], float], attempts: list[Attempt]
) -> None:
    """Runs that are not asked for would be in the dataset all the same."""
    asked = {(attempt.task_id, attempt.number) for attempt in attempts}
    if others := sorted(set(finished) - asked):
        task_id, number = others[0]
        raise ConfigError(
            f"{options.output}: holds {len(others)} runs that are not asked for, such as attempt "
            f"{number} at {task_id!r}; ask for as many tasks and attempts as before or more, or "
            "choose another evaluate.output"
        )


def play_attempts(
    player: Player,
    attempts: list[Attempt],
    options: EvaluateSection,
    endpoint: Endpoint,
    check: Callable[[], None],
    tally: _Tally,
    report: Callable[[Progress], None],
) -> None:
    """Play on `concurrency` threads; stops early when the server is gone or runs keep failing."""
    num_runs = tally.num_done + len(attempts)
    stop, client = threading.Event(), endpoint.connect()
    pool = ThreadPoolExecutor(options.concurrency, thread_name_prefix="starpo-play")
    try:
        pending = player.submit(pool, attempts, endpoint, client, stop)
        while pending:
            finished, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in finished:
                _count(future, tally)
            check()
            report(
                Progress(
                    stage="play",
                    num_done=tally.num_done,
                    num_runs=num_runs,
                    num_successes=tally.num_successes,
                    num_failed=len(tally.errors),
                )
            )
            if len(tally.errors) >= max(_MOST_FAILURES, _FAILED_SHARE * tally.num_done):
                raise _describe_failures(options, tally) from tally.errors[-1]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        client.close()


def _describe_failures(options: EvaluateSection, tally: _Tally) -> RolloutError:
    import openai

    last, hint = tally.errors[-1], ""
    if (where := _locate(last)) is not None:
        hint = f"at {where}; "
    if options.endpoint is not None and isinstance(last, openai.OpenAIError):
        hint += f"check [evaluate.endpoint], {options.endpoint.base_url}; "
    return RolloutError(
        f"{options.played}: {len(tally.errors)} runs failed, the last with {last!r}; {hint}"
        "finished runs are kept, start again to go on"
    )


def _locate(error: BaseException) -> str | None:
    """Where in the agent's or environment's own code it came from; None: nowhere there."""
    own: list[traceback.FrameSummary] = []
    raised: BaseException | None = error
    while raised is not None:  # what it was raised from is nearer to the fault
        frames = traceback.extract_tb(raised.__traceback__)
        own = [f for f in frames if not f.filename.startswith(_NOT_OWN)] or own
        raised = raised.__cause__
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def _count(future: Future[float | None], tally: _Tally) -> None:
    error = future.exception()
    if error is not None:
        tally.errors.append(error)
        return
    reward = future.result()
    if reward is not None:
        tally.num_done += 1
        tally.num_successes += reward >= SUCCESS_REWARD


def summarize_runs(
    dataset: Path,
    options: EvaluateSection,
    *,
    environment: tuple[str | None, str | None],
    failures: list[str],
    num_runs: int,
    num_played: int,
    wall_s: float,
) -> dict[str, Any]:
    """Dataset -> the figures of `summary.json`; null where nothing is known."""
    rows = scan_table(dataset, "trajectories").filter(pl.col("reward").is_not_null()).collect()
    by_task = rows.group_by("task_id").agg((pl.col("reward") >= SUCCESS_REWARD).mean())
    success = estimate_success_rate(by_task["reward"].to_numpy()) if by_task.height else None
    tokens = rows.select((pl.col("input_tokens") + pl.col("output_tokens")).mean()).item()
    turns = rows["num_turns"].sum()
    return {
        "policy_id": options.policy_id,
        "model": options.model_name,
        "weights_sha256": read_weights(options),
        "environment": environment[0],
        "environment_version": environment[1],
        "sampling": asdict(options.sampling) if options.agent is None else None,
        "max_turns": options.max_turns,
        "split": options.split,
        "seed": options.seed,
        "num_tasks": by_task.height,
        "attempts": options.attempts,
        "num_rewarded": rows.height,
        "num_missing": num_runs - rows.height,
        "failures": failures,
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
