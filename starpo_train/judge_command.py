"""`starpo-train judge`: its options, its progress bar, and what is said at the end."""

import argparse
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:  # nothing heavy: every command's parser comes by here
    from starpo_train.judge.run import JudgeProgress, JudgeRun

EXIT_INCONCLUSIVE: Final = 20
"""As the gate's."""
EXIT_INTERRUPTED: Final = 130


def add_judge(command: argparse.ArgumentParser) -> None:
    """Give a parser the options of `judge`."""
    command.description = (
        "Score a dataset with a pinned LLM judge; docs/judge.md. "
        "Exit code: VALID 0, INCONCLUSIVE 20; 2 on an error."
    )
    command.add_argument("judge_file", type=Path, metavar="JUDGE.toml")
    command.set_defaults(handler=_judge)


def _judge(options: argparse.Namespace) -> int:
    from starpo_train.judge.run import run_judge
    from starpo_train.judge.settings import read_judge_config

    config = read_judge_config(options.judge_file)
    with JudgeDisplay() as display:
        run = run_judge(config, progress=display.show)
    display.print_end(run, again=f"starpo-train judge {options.judge_file}")
    if run.is_interrupted:
        return EXIT_INTERRUPTED
    return 0 if run.is_valid else EXIT_INCONCLUSIVE


class JudgeDisplay:
    """A progress bar over the items."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._console = console or Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("start", total=None, note="")

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop drawing, whatever happened."""
        self._bar.stop()

    def show(self, progress: "JudgeProgress") -> None:
        """Take how far the run is."""
        note = f"{progress.num_scored} scored" if progress.num_scored else ""
        if progress.num_cached:
            note += f", {progress.num_cached} from before"
        self._bar.update(
            self._task,
            description=progress.stage,
            total=progress.num_items or None,
            completed=progress.num_done,
            note=note,
        )

    def print_end(self, run: "JudgeRun", *, again: str) -> None:
        """Say what was found, why it may not count, and how to go on."""
        for line in describe_run(run):
            self._console.print(line, markup=False)
        if any(
            "not judged yet" in reason or "not all" in reason for reason in run.summary["reasons"]
        ):
            self._console.print(f"go on with: {again}", markup=False)
        self._console.print(f"written: {run.scores_path}, {run.summary_path}", markup=False)


def describe_run(run: "JudgeRun") -> list[str]:
    """A run's summary in lines."""
    summary = run.summary
    mean = summary["score_mean"]
    scored = f"{summary['num_scored']:,} of {summary['num_items']:,} items have a score"
    lines = [
        f"{summary['verdict']}: {summary['rubric']} by {summary['judge_id']}: {scored}"
        + ("" if mean is None else f", mean {mean:.3f}"),
        *[f"  {reason}" for reason in summary["reasons"]],
        *[f"  note: {note}" for note in summary["notes"]],
    ]
    without = {name: n for name, n in summary["statuses"].items() if name != "scored"}
    if without:
        found = ", ".join(f"{count:,} {name}" for name, count in without.items())
        lines.append(f"without a score: {found}")
    if summary["anchors"] is not None:
        lines.append(f"anchors: {summary['anchors']['reason']}")
    lines += _describe_canaries(summary["canaries"])
    cost = summary["cost"]
    paid = "" if cost["cost"] is None else f", cost {cost['cost']:.4f}"
    lines.append(
        f"spent over all starts: {cost['calls']:,} calls, {cost['input_tokens']:,} tokens read, "
        f"{cost['output_tokens']:,} written{paid}"
    )
    rewards = summary.get("rewards")
    if rewards is not None:
        where = f" to {rewards['store']}" if "store" in rewards else f": {rewards['reason']}"
        lines.append(f"rewards written: {rewards['num_written']:,}{where}")
        if rewards["num_written"]:
            lines.append("they count after an export that trusts judges (docs/judge.md)")
    return lines


def _describe_canaries(canaries: dict[str, Any] | None) -> list[str]:
    if canaries is None or canaries["flip_rate"] is None:
        return []
    by_kind = ", ".join(
        f"{kind['kind']} {kind['num_flipped']}/{kind['num_judged']}" for kind in canaries["kinds"]
    )
    return [f"injections that moved the score: {canaries['flip_rate']:.1%} ({by_kind})"]
