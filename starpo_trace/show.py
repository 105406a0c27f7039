"""Dataset or trace store -> terminal view: where the spans went, trajectories, one step by step."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson
import polars as pl
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from starpo_trace.convert.dataset import convert_sources
from starpo_trace.convert.manifest import Accounting, Manifest, read_manifest, scan_table
from starpo_trace.errors import DatasetError
from starpo_trace.plain import escape_controls
from starpo_trace.schema import MANIFEST_FILE

_MAX_TEXT: Final = 2000
_STYLES: Final = {"rl": "green", "sft": "yellow", "none": "red"}
_SIGNATURES: Final = {
    "valid": "with a valid signature",
    "invalid": "with an invalid signature",
    "unchecked": "signed, not checked (no --reward-keys)",
    "missing": "not signed",
}

Tables = Mapping[str, pl.DataFrame]


def show_path(
    path: Path,
    console: Console,
    *,
    trajectory_id: str | None = None,
    max_trajectories: int = 20,
) -> None:
    """Dataset, trace store or OTLP file -> printed on `console`.

    Raises:
        DatasetError: there is no such trajectory, or no single one whose id begins so.
        SourceError: the path does not exist or holds no spans.
    """
    tables, accounting = _load(path)
    if trajectory_id is None:
        console.print(
            Text(escape_controls(str(path)), "italic"), soft_wrap=True
        )  # a path stays in one piece
        console.print(render_accounting(accounting, tables))
        console.print(_render_reasons(tables["trajectories"]))
        _print_trajectories(console, tables["trajectories"], max_trajectories)
        return
    found = _find_trajectory(tables["trajectories"], trajectory_id)
    of_one = {
        name: table.filter(pl.col("trajectory_id") == found)
        for name, table in tables.items()
        if "trajectory_id" in table.columns
    }
    for line in render_trajectory(of_one):
        console.print(line, soft_wrap=True)


def render_manifest(manifest: Manifest) -> RenderableType:
    """Manifest -> the funnel from spans read to trajectories usable for RL."""
    return _render_funnel(
        manifest.accounting,
        manifest.counts["trajectories"],
        verdicts=manifest.usable_for,
        signatures=manifest.signatures,
    )


def render_accounting(accounting: Accounting, tables: Tables) -> RenderableType:
    """Accounting and tables -> the funnel, as `render_manifest`."""
    trajectories = tables["trajectories"]
    return _render_funnel(
        accounting,
        trajectories.height,
        verdicts=dict(trajectories["usable_for"].value_counts().iter_rows()),
        signatures=dict(tables["rewards"]["signature"].value_counts().iter_rows()),
    )


def render_trajectory(tables: Tables) -> Iterator[RenderableType]:
    """Tables filtered to one trajectory -> what it saw, thought, did and got, in order."""
    row = tables["trajectories"].row(0, named=True)
    yield Text(f"trajectory {escape_controls(row['trajectory_id'])}", style="bold")
    facts = ("task_id", "attempt", "policy_id", "end", "usable_for", "num_turns", "num_steps")
    given = [f"{name}={row[name]}" for name in facts if row[name] is not None]
    yield Text("  ".join(escape_controls(each) for each in given))
    if row["reasons"]:
        yield Text(f"not better because: {', '.join(row['reasons'])}", style="yellow")
    messages = {node["node_id"]: node for node in tables["messages"].iter_rows(named=True)}
    shown: set[str] = set()
    states = tables["states"].sort("step", "time_ns")
    for turn in tables["turns"].sort("turn").iter_rows(named=True):
        yield Text(f"\n-- turn {turn['turn']} (step {turn['step']}, {turn['outcome']})", "bold")
        yield from _render_observation(turn["input_node"], messages, shown)
        before, states = _split_states(states, turn["step"])
        yield from _render_states(before)
        yield from _render_action(turn)
        shown.add(turn["output_node"])
        of_turn = tables["rewards"].filter(pl.col("turn") == turn["turn"])
        yield from _render_rewards(of_turn)
    yield Text("\n-- end", "bold")
    unseen = tables["messages"].filter(~pl.col("node_id").is_in(list(shown - {None})))
    for node in unseen.sort("depth").iter_rows(named=True):
        yield from _labelled(f"observation/{node['role']}", _message_text(node), "cyan")
    yield from _render_states(states)
    yield from _render_rewards(tables["rewards"].filter(pl.col("turn").is_null()))


def _load(path: Path) -> tuple[Tables, Accounting]:
    if (path / MANIFEST_FILE).is_file():
        manifest = read_manifest(path)
        return {
            name: scan_table(path, name).collect() for name in manifest.tables
        }, manifest.accounting
    conversion = convert_sources([path])
    return conversion.tables, conversion.accounting


def _find_trajectory(trajectories: pl.DataFrame, trajectory_id: str) -> str:
    ids = trajectories["trajectory_id"].to_list()
    if trajectory_id in ids:
        return trajectory_id
    matches = [other for other in ids if other.startswith(trajectory_id)]
    if len(matches) == 1:
        return matches[0]
    what = f"{len(matches)} trajectories begin with" if matches else "no trajectory"
    raise DatasetError(
        f"{what} {trajectory_id!r} among {len(ids)}; `starpo-trace show` without --trajectory "
        "lists them"
    )


def _render_funnel(
    accounting: Accounting,
    num_trajectories: int,
    *,
    verdicts: Mapping[str, int],
    signatures: Mapping[str, int],
) -> RenderableType:
    table = Table(show_header=False, box=None)
    table.add_column(justify="right")
    table.add_column()
    table.add_row(f"{accounting.spans_read:,}", "spans read", style="bold")
    for reason, count in accounting.spans_rejected_by_reason.items():
        table.add_row(f"{count:,}", f"rejected: {escape(reason)}")
    if accounting.duplicates:
        table.add_row(f"{accounting.duplicates:,}", "duplicates")
    table.add_row(f"{accounting.spans_used:,}", "spans used", style="bold")
    table.add_row(f"{num_trajectories:,}", "trajectories", style="bold")
    for verdict, style in _STYLES.items():
        table.add_row(f"{verdicts.get(verdict, 0):,}", f"usable for {verdict}", style=style)
    for state, words in _SIGNATURES.items():
        if count := signatures.get(state, 0):
            style = "red" if state == "invalid" else None
            table.add_row(f"{count:,}", f"rewards {words}", style=style)
    if accounting.damaged_records:
        note = "damaged records in the sources, skipped"
        table.add_row(f"{accounting.damaged_records:,}", note, style="red")
    return table


def _render_reasons(trajectories: pl.DataFrame) -> RenderableType:
    counts = (
        trajectories.select(pl.col("reasons").explode())
        .drop_nulls()
        .group_by("reasons")
        .len()
        .sort("len", "reasons", descending=[True, False])
    )
    lines = [Text(f"{count:>7,}  {reason}") for reason, count in counts.iter_rows()]
    return Group(Text("\nreasons why not better", style="bold"), *lines) if lines else Text("")


def _print_trajectories(console: Console, trajectories: pl.DataFrame, max_rows: int) -> None:
    table = Table(
        "trajectory", "task", "attempt", "end", "turns", "tool calls", "reward", "usable for"
    )
    for row in (
        trajectories.sort("started_ns", "trajectory_id").head(max_rows).iter_rows(named=True)
    ):
        table.add_row(
            escape(escape_controls(row["trajectory_id"])),
            escape(escape_controls(row["task_id"] or "-")),
            _or_dash(row["attempt"]),
            escape(escape_controls(_or_dash(row["end"]))),
            str(row["num_turns"]),
            str(row["num_tool_calls"]),
            "-" if row["reward"] is None else f"{row['reward']:g}",
            Text(row["usable_for"], _STYLES[row["usable_for"]]),
        )
    num_hidden = trajectories.height - max_rows
    # An id that is cut is of no use, so the table is as wide as it needs, not as the terminal is.
    table.width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.print(table, soft_wrap=True)
    console.print(f"... and {num_hidden:,} more (--limit)" if num_hidden > 0 else "")


def _render_observation(
    node_id: str | None, messages: Mapping[str, dict[str, Any]], shown: set[str]
) -> Iterator[RenderableType]:
    path = []
    while node_id is not None and node_id in messages and node_id not in shown:
        shown.add(node_id)
        path.append(messages[node_id])
        node_id = messages[node_id]["parent_id"]
    for node in reversed(path):
        yield from _labelled(f"observation/{node['role']}", _message_text(node), "cyan")


def _render_action(turn: Mapping[str, Any]) -> Iterator[RenderableType]:
    if turn["reasoning"]:
        yield from _labelled("thinking", turn["reasoning"], "magenta")
    if turn["text"]:
        yield from _labelled("action/text", turn["text"], "green")
    for call in turn["tool_calls"] or ():
        yield from _labelled("action/tool", f"{call['name']}({call['arguments']})", "green")
    if turn["error"]:
        yield from _labelled("error", turn["error"], "red")


def _split_states(states: pl.DataFrame, step: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    is_before = pl.col("step").fill_null(0) <= step
    return states.filter(is_before), states.filter(~is_before)


def _render_states(states: pl.DataFrame) -> Iterator[RenderableType]:
    for state in states.iter_rows(named=True):
        yield from _labelled(f"state/{state['name']}", state["value"], "blue")


def _render_rewards(rewards: pl.DataFrame) -> Iterator[RenderableType]:
    for reward in rewards.sort("time_ns").iter_rows(named=True):
        notes = [str(reward["source"])]
        notes += _describe_signature(reward)
        notes += [] if reward["trusted"] else [f"not trusted: {reward['untrusted_because']}"]
        notes += ["superseded"] if reward["superseded"] else []
        text = f"{reward['name']} = {reward['value']} ({', '.join(notes)})"
        yield from _labelled(f"reward/{reward['scope']}", escape_controls(text), "yellow")


def _describe_signature(reward: Mapping[str, Any]) -> list[str]:
    match reward["signature"]:
        case "valid":
            return [f"signed with {reward['key_id']}"]
        case "invalid":
            return ["signature invalid"]
        case "unchecked":
            return [f"signature of {reward['key_id'] or 'no key'} not checked"]
    return []


def _labelled(label: str, text: str, style: str) -> Iterator[RenderableType]:
    cut = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({len(text):,} characters)"
    # `Text` keeps brackets and escape sequences of recorded content from becoming markup.
    label = escape_controls(label)
    yield Text.assemble((f"{label:>18}  ", style), escape_controls(cut, keep="\n\t"))


def _message_text(node: Mapping[str, Any]) -> str:
    try:
        parts = orjson.loads(node["message"])["parts"]
    except (orjson.JSONDecodeError, KeyError):
        return node["message"]
    return "\n".join(_part_text(part) for part in parts)


def _part_text(part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    if kind in {"text", "reasoning"}:
        return str(part.get("content"))
    if kind == "tool_call":
        return f"{part.get('name')}({part.get('arguments')})"
    if kind == "tool_call_response":
        return str(part.get("response", part.get("result")))
    return orjson.dumps(part).decode()


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)
