"""Records of training and evaluation -> what a person sees in a terminal."""

from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from starpo_train.bars import BarDisplay
from starpo_train.changes import describe_changes
from starpo_train.diagnostics.unlearning import describe_change
from starpo_train.provenance import DataFacts
from starpo_train.trainer import TrainResult

_DESCRIBED = {
    "pack_split": "out of memory: going on with {tokens_per_pack:,} tokens per pack instead of "
    "{tokens_per_pack_before:,}; set train.tokens_per_pack to that, or see docs/training.md",
    "early_stop": "stopped early by {rule}: {reason}; docs/diagnostics.md says what to do",
    "rollback": "the result is {checkpoint}, the last one that still found successful runs likely",
    "no_rollback": "no checkpoint is left that still found successful runs likely: {checkpoint} is the result "
    "all the same; a lower train.learning_rate loses them later, a smaller "
    "train.checkpoint_every_steps (0: none on the way) keeps more of what was before",
    "alarm": "warning: step {step}: {rule}: {reason}; see docs/diagnostics.md",
    "tracker_failed": "{tracker} gets no more metrics ({error}); metrics.jsonl has them all",
}
_NEARLY_ALL: Final = 0.99
"""Share of clipped tokens at which a run has stopped learning."""


class TrainingDisplay(BarDisplay):
    """A progress bar with loss, tokens per second and time left."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(
            console,
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[tokens_per_s]:,.0f} tokens/s"),
            TimeRemainingColumn(),
        )
        self._task: Any = None
        self._has_warned = False

    def show(self, record: dict[str, Any]) -> None:
        """Take the record of the start, of a step or of an event."""
        if record.get("event") == "diagnostics":
            self._console.print(_describe_measurement(record), markup=False, soft_wrap=True)
            return
        if record.get("event") == "held_back":
            self._console.print(describe_change(record), markup=False, soft_wrap=True)
            return
        if record.get("event") in _DESCRIBED:
            line = _DESCRIBED[record["event"]].format_map(record)
            self._console.print(line, markup=False, soft_wrap=True)
            return
        if "event" in record:
            self._console.print(_describe_start(record), markup=False, soft_wrap=True)
            self._task = self._bar.add_task(
                "train",
                total=record["num_steps"],
                completed=record.get("step", 0),
                epoch=0,
                loss="-",
                tokens_per_s=0.0,
            )
            return
        if record.get("clip_fraction", 0.0) >= _NEARLY_ALL and not self._has_warned:
            self._has_warned = True
            self._console.print(
                f"warning: step {record['step']}: {record['clip_fraction']:.0%} of the tokens are "
                "clipped and have no gradient; lower train.learning_rate, or set "
                "algorithm.kl_ceiling",
                markup=False,
                soft_wrap=True,
            )
        self._bar.update(
            self._task,
            completed=record["step"],
            epoch=record["epoch"],
            loss=f"{record['loss']:.4f}",
            tokens_per_s=record["tokens_per_s"],
        )

    def print_end(self, result: TrainResult) -> None:
        """Say where the checkpoint is."""
        if result.already_finished:
            stopped = (
                f" (stopped by {result.stopped_by}, and stays so)" if result.stopped_by else ""
            )
            self._console.print(
                f"already finished{stopped}: {result.final_path}", markup=False, soft_wrap=True
            )
            return
        verb = "stopped" if result.interrupted else "done"
        self._console.print(
            f"{verb} after {result.num_steps} steps: {result.final_path}",
            markup=False,
            soft_wrap=True,
        )
        if result.interrupted:
            run = result.metrics_path.parent
            self._console.print(f"go on with: starpo-train resume {run}", soft_wrap=True)


def print_facts(facts: DataFacts, *, title: str, console: Console | None = None) -> None:
    """What a dataset holds, counted."""
    console = console or Console(highlight=False)
    table = Table(title=title, show_header=False)
    table.add_row("trajectories", f"{facts.num_trajectories:,}")
    table.add_row("with a trusted reward", f"{facts.num_rewarded:,}")
    table.add_row("with a trusted reward and content", f"{facts.num_usable:,}")
    table.add_row("tasks among those", f"{facts.num_usable_groups:,}")
    table.add_row("tasks whose attempts differ in reward", f"{facts.num_paired_groups:,}")
    table.add_row("with exact ids and log-probabilities", f"{facts.num_exact:,}")
    table.add_row("tasks among those", f"{facts.num_groups:,}")
    table.add_row("tasks whose attempts differ in reward", f"{facts.num_comparable_groups:,}")
    if facts.num_estimated:
        table.add_row("with estimated log-probabilities", f"{facts.num_estimated:,}")
    span = f"{facts.reward_low:g} to {facts.reward_high:g}"
    table.add_row("rewards", span if facts.num_rewarded else "no rewards")
    for reason, count in facts.reasons.items():
        table.add_row(f"not exact: {reason}", f"{count:,}")
    console.print(table)


def _describe_measurement(record: dict[str, Any]) -> str:
    if not record["num_answers"]:
        return "no turn to measure mutual information on"
    return (
        f"step {record['step']}: prompts and {record['z']}: "
        f"{record['mi_per_sequence']:.2f} of {record['mi_limit']:.2f} nats shared; own prompt "
        f"found for {record['retrieval_at_1']:.0%} (chance {record['chance_at_1']:.0%})"
    )


def _describe_start(record: dict[str, Any]) -> str:
    lines = [
        f"{record['algorithm']}: {record['algorithm_reason']}",
        f"{record['num_trajectories']:,} trajectories, {record['num_rows']:,} rows, "
        f"{record['num_tokens']:,} tokens of which {record['num_action_tokens']:,} trained",
    ]
    lines[:0] = _describe_resume(record)
    if record.get("unused_settings"):
        names = ", ".join(record["unused_settings"])
        lines.append(f"without effect on {record['algorithm']}: {names}")
    if record["left_out"]:
        lines.append(_describe_left_out(record))
    if record.get("held_back_note"):
        lines.append(f"runs of tasks held back (docs/diagnostics.md): {record['held_back_note']}")
    if record.get("rendering"):
        found = ", ".join(f"{name} in {count}" for name, count in record["rendering"].items())
        lines.append(f"rendered by the chat template (docs/tokens.md): {found}")
    if record.get("logprob_drift_mean_abs") is not None:
        lines.append(
            f"recorded log-probabilities differ from the starting model's by "
            f"{record['logprob_drift_mean_abs']:.4f} nats/token on average"
        )
    drift = record.get("recorded_drift")
    if drift and drift["num_rendered"] > drift["num_prompts_equal"]:
        lines.append(
            f"the chat template renders {drift['num_prompts_equal']} of {drift['num_rendered']} "
            "recorded prompts as they were; `starpo-train explain DATASET --model PATH` shows more"
        )
    fit = record.get("logprob_conventions")
    if fit is not None:
        lines.append(
            "at temperatures other than 1 they differ by "
            f"{fit['raw']:.4f} nats/token if data.logprobs is 'raw', {fit['processed']:.4f} if it is "
            f"'processed'; it is {record['logprobs']!r}"
        )
        if fit["better"] not in (None, record["logprobs"]):
            lines[-1] = f"warning: {lines[-1]}, which seems wrong (docs/tokens.md)"
    if record.get("has_chat_template") is False:
        lines.append(
            "warning: the model has no chat template, so `starpo-train serve` will refuse its "
            "checkpoints; add a chat_template.jinja file to the model folder first"
        )
    return "\n".join(lines)


def _describe_resume(record: dict[str, Any]) -> list[str]:
    lines = []
    if record.get("event") == "resume":
        lines.append(f"going on after step {record['step']}")
    if record.get("changed"):
        lines.append(f"edited since then: {describe_changes(record['changed'])}")
        if "train.epochs" in record["changed"]:
            lines[-1] += "; from here on the learning rate is that of the new length"
    return lines


def _describe_left_out(record: dict[str, Any]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in record["left_out"].items())
    long = record.get("too_long")
    if long:
        reasons += (
            f"; the longest row has {long['longest_row']:,} tokens, the model's "
            f"max_position_embeddings is {long['limit']:,}"
        )
    return f"left out (docs/training.md): {reasons}"
