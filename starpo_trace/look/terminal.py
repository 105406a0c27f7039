"""Story of one trajectory -> lines of a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import polars as pl
from rich.console import RenderableType
from rich.text import Text

from starpo_trace.look.parts import Part, read_calls, read_parts
from starpo_trace.look.story import Entry, Story, group_by_turn, tell_story
from starpo_trace.plain import escape_controls

_MAX_TEXT: Final = 2000
_FACTS: Final = ("task_id", "attempt", "policy_id", "end", "usable_for", "num_turns", "num_steps")


def render_trajectory(tables: Mapping[str, pl.DataFrame]) -> Iterator[RenderableType]:
    """Tables filtered to one trajectory -> what it saw, thought, did and got, in order."""
    story = tell_story(tables)
    row = story.row
    yield Text(f"trajectory {escape_controls(row['trajectory_id'])}", style="bold")
    given = [f"{name}={row[name]}" for name in _FACTS if row[name] is not None]
    yield Text("  ".join(escape_controls(each) for each in given))
    if row["reasons"]:
        reasons = escape_controls(", ".join(row["reasons"]))
        yield Text(f"not better because: {reasons}", style="yellow")
    begins = {branch.first: number for number, branch in enumerate(story.branches)}
    if story.branches and not story.branches[0].is_torn:
        del begins[story.branches[0].first]  # the beginning needs no word
    for turn, places in group_by_turn(story):
        title = "end"
        if turn is not None:
            title = f"turn {turn['turn']} (step {turn['step']}, {turn['outcome']})"
        yield Text(f"\n-- {escape_controls(title)}", "bold")
        for place in places:
            if place in begins:
                yield _render_fork(story, begins[place])
            yield from _render_entry(story.entries[place])


def _render_fork(story: Story, number: int) -> RenderableType:
    branch = story.branches[number]
    if branch.leaves is None:
        how = "goes on from messages that are missing" if branch.is_torn else "begins anew"
        return Text(f"   ┌─ branch {number + 1} {how}", "bold blue")
    origin = story.entries[branch.leaves]
    what = (
        f"turn {origin.row['turn']}" if origin.kind == "turn" else f"a {origin.row['role']} message"
    )
    text = f"   ├─ branch {number + 1} leaves branch {origin.branch + 1} after {what}"
    return Text(escape_controls(text), "bold blue")


def _render_entry(entry: Entry) -> Iterator[RenderableType]:
    row = entry.row
    if entry.kind == "message":
        text = "\n".join(_part_text(part) for part in read_parts(row["message"]))
        yield from _labelled(f"observation/{row['role']}", text, "cyan")
    elif entry.kind == "state":
        yield from _labelled(f"state/{row['name']}", row["value"] or "", "blue")
    elif entry.kind == "reward":
        yield from _render_reward(row)
    else:
        labels = {"thinking": ("thinking", "magenta"), "text": ("action/text", "green")}
        for part in read_calls(row):
            label, style = labels.get(part.kind, ("action/tool", "green"))
            yield from _labelled(label, _part_text(part), style)
        if row["error"]:
            yield from _labelled("error", row["error"], "red")


def _part_text(part: Part) -> str:
    return f"{part.name}({part.text})" if part.kind == "call" else part.text


def _render_reward(reward: Mapping[str, Any]) -> Iterator[RenderableType]:
    notes = [str(reward["source"]), *_describe_signature(reward)]
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
