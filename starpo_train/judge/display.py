"""Progress and findings of a judge's run -> what a person sees in a terminal."""

from typing import Any

from rich.console import Console

from starpo_train.bars import StageDisplay
from starpo_train.judge.run import JudgeProgress, JudgeRun


class JudgeDisplay(StageDisplay):
    """A progress bar over the items."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console or Console(highlight=False, soft_wrap=True))

    def show(self, progress: JudgeProgress) -> None:
        """Take how far the run is."""
        note = f"{progress.num_scored} scored" if progress.num_scored else ""
        if progress.num_cached:
            note += f", {progress.num_cached} from before"
        self.show_stage(
            progress.stage, num_done=progress.num_done, num_all=progress.num_items, note=note
        )

    def print_end(self, run: JudgeRun, *, again: str) -> None:
        """Say what was found, why it may not count, and how to go on."""
        for line in describe_run(run):
            self._console.print(line, markup=False)
        if any(
            "not judged yet" in reason or "not all" in reason for reason in run.summary["reasons"]
        ):
            self._console.print(f"go on with: {again}", markup=False)
        self._console.print(f"written: {run.scores_path}, {run.summary_path}", markup=False)


def describe_run(run: JudgeRun) -> list[str]:
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
