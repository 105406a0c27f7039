"""Stories -> the JSON that the page's script reads: texts once, everything else by index.

Every text goes through `make_visible` on its way in.
"""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

import orjson

from starpo_trace.look.parts import Part, read_calls, read_parts
from starpo_trace.look.story import Branch, Entry, Row, Story
from starpo_trace.look.visible import make_visible
from starpo_trace.messages import dump_json

_FACTS: Final = (
    *("trajectory_id", "task_id", "attempt", "seed", "policy_id", "cohort", "split", "end"),
    *("environment_name", "environment_version", "agent_name", "conversation_id", "trace_id"),
    *("source", "num_turns", "num_steps", "num_tool_calls", "num_messages", "num_branches"),
    *("num_parts", "reward", "input_tokens", "output_tokens", "usable_for", "reasons"),
)
_TURN_FACTS: Final = (
    *("turn", "step", "step_kind", "model", "finish_reason", "outcome", "reward"),
    *("input_tokens", "output_tokens", "token_provenance", "logprob_provenance", "temperature"),
)
_REWARD_FACTS: Final = (
    *("name", "scope", "source", "value", "min", "max", "turn", "trusted"),
    *("untrusted_because", "superseded", "signature", "key_id", "judge_id"),
)
_OF_TURN: Final = frozenset({"text", "thinking", "call"})
"""Parts of a sampled message that its turn shows by itself."""
_EXACT: Final = 2**53
_NUMBERS_NS: Final = 1_000_000_000
"""Starts before this are no times: without times they number spans from 0 on."""

Record = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Payload:
    """What the script reads, as it grows."""

    texts: list[bytes] = field(default_factory=list)
    """JSON of each text."""
    trajectories: list[bytes] = field(default_factory=list)
    """JSON of each trajectory."""
    rows: list[Record] = field(default_factory=list)
    """Facts of each, for the page without a script."""
    num_bytes: int = 0
    """Size of the JSON."""
    places: dict[str, int] = field(default_factory=dict)
    """Text -> index."""

    def add(self, story: Story, max_bytes: int) -> bool:
        """Add a trajectory if the whole stays within `max_bytes`; whether it did."""
        fresh = _Texts(known=self.places)
        record = _write_story(story, fresh)
        texts = [_dump(text) for text in fresh.added]
        body = _dump(record)
        num_bytes = self.num_bytes + len(body) + 1 + sum(len(text) + 1 for text in texts)
        if num_bytes > max_bytes:
            return False
        self.places.update(fresh.added)
        self.texts += texts
        self.trajectories.append(body)
        self.rows.append({name: record[name] for name in _FACTS})
        self.num_bytes = num_bytes
        return True

    def dump(self) -> str:
        """JSON that can stand in a script element: no character of it is markup."""
        texts, trajectories = b",".join(self.texts), b",".join(self.trajectories)
        return (b'{"texts":[%b],"trajectories":[%b]}' % (texts, trajectories)).decode()


@dataclass(slots=True, kw_only=True)
class _Texts:
    """Texts that one trajectory adds to those that are known."""

    known: dict[str, int]
    added: dict[str, int] = field(default_factory=dict)

    def place(self, text: str) -> int:
        text = make_visible(text)
        found = self.known.get(text)
        return (
            self.added.setdefault(text, len(self.known) + len(self.added))
            if found is None
            else found
        )


def _dump(value: Any) -> bytes:
    text = orjson.dumps(value)
    for character, escape in ((b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026")):
        text = text.replace(character, escape)
    return text


def _write_story(story: Story, texts: _Texts) -> Record:
    row = story.row
    record = _pick(row, _FACTS) | {"reasons": _show(row["reasons"] or [])}
    record["started_ms"] = _started_ms(row)
    record["seconds"] = _seconds(row)
    record["branches"] = [_write_branch(branch) for branch in story.branches]
    record["entries"] = [_write_entry(entry, texts) for entry in story.entries]
    return record


def _started_ms(row: Row) -> int | None:
    """When a run began; None where its source has no times and `started_ns` only numbers spans."""
    started_ns = row["started_ns"]
    return None if started_ns is None or started_ns < _NUMBERS_NS else started_ns // 1_000_000


def _write_branch(branch: Branch) -> list[Any]:
    return [branch.leaves, branch.first, branch.last, branch.is_torn]


def _write_entry(entry: Entry, texts: _Texts) -> Record:
    row, record = entry.row, {"kind": entry.kind, "branch": entry.branch}
    if entry.kind == "message":
        record |= {"role": _show(row["role"]), "first_turn": row["first_turn"]}
        record["parts"] = [_write_part(part, texts) for part in read_parts(row["message"])]
    elif entry.kind == "turn":
        record |= _pick(row, _TURN_FACTS) | {"seconds": _seconds(row)}
        parts = read_calls(row)
        if entry.node is not None:
            of_node = read_parts(entry.node["message"])
            known = Part(kind="also", text=dump_json({"finish_reason": row["finish_reason"]}))
            parts += [
                part
                for part in of_node
                if part != known and (not parts or part.kind not in _OF_TURN)
            ]
        record["parts"] = [_write_part(part, texts) for part in parts]
        record["error"] = None if row["error"] is None else texts.place(row["error"])
        record["tools"] = (
            None if not row["tool_definitions"] else texts.place(row["tool_definitions"])
        )
    elif entry.kind == "state":
        record |= {"name": _show(row["name"]), "step": row["step"]}
        record["text"] = texts.place(row["value"] or "")
    else:
        record |= _pick(row, _REWARD_FACTS) | {"kind_of": _show(row["kind"])}
        why = row["explanation"]
        record["explanation"] = None if why is None else texts.place(why)
    return record


def _write_part(part: Part, texts: _Texts) -> list[Any]:
    return [_show(part.kind), _show(part.name), _show(part.call_id), texts.place(part.text)]


def _pick(row: Row, names: tuple[str, ...]) -> Record:
    return {name: _show(row[name]) for name in names}


def _show(value: Any) -> Any:
    if isinstance(value, str):
        return make_visible(value)
    if isinstance(value, list):
        return [make_visible(each) for each in value]
    # What JSON or a script's numbers cannot hold is written out.
    is_beyond = isinstance(value, float) and not isfinite(value)
    is_beyond |= isinstance(value, int) and abs(value) > _EXACT
    return str(value) if is_beyond else value


def _seconds(row: Row) -> float | None:
    if row["started_ns"] is None or row["ended_ns"] is None:
        return None
    return round((row["ended_ns"] - row["started_ns"]) / 1e9, 3)
