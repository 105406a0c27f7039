"""Dataset -> JSON lines of conversations that other trainers read.

`openai`: OpenAI's fine-tuning format. `trl`: TRL's conversational format, with reasoning. A line is
one branch of a trajectory that ends in an answer which nothing goes on from; what was only read, such
as a sub-agent's own conversation, is on its own branch. What the other trainer cannot hold is left
out by name: token ids, log-probabilities, rewards.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import polars as pl

from starpo_trace.convert.chatmessages import UnwritableError, write_chat, write_tools
from starpo_trace.convert.verdict import NOT_EVEN_SFT
from starpo_trace.errors import ConfigError

ChatFormat = Literal["openai", "trl"]

_TRL_FIELDS: Final = frozenset({"reasoning_content"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFileReport:
    """What became of a dataset's trajectories."""

    num_examples: int
    """Lines written."""
    num_trajectories: int
    """Trajectories that gave at least one."""
    left_out: Mapping[str, int]
    """Reason -> trajectories that gave none; the most frequent first, then by name."""


def write_chat_file(
    dataset: Path,
    output: Path,
    *,
    form: ChatFormat,
    split: str | None = None,
    min_reward: float | None = None,
) -> ChatFileReport:
    """Write the conversations of a dataset; the file is there whole, or not at all.

    Args:
        dataset: Folder of the dataset.
        output: The file, replaced if there.
        form: `openai` or `trl`.
        split: Only `train` or `test`.
        min_reward: Only trajectories with at least this reward.

    Raises:
        ConfigError: an unknown format, or a folder that cannot be written to.
        SourceError: no dataset there.
    """
    from starpo_trace.convert.dataset import scan_table

    if form not in get_args(ChatFormat):
        raise ConfigError(f"format {form!r}: use one of {', '.join(get_args(ChatFormat))}")
    tables = {name: scan_table(dataset, name).collect() for name in ("trajectories", "turns")}
    messages = scan_table(dataset, "messages").collect()
    left_out: Counter[str] = Counter()
    num_examples = num_trajectories = 0
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for lines, reason in _convert(tables, messages, form, split, min_reward):
                if reason is not None:
                    left_out[reason] += 1
                    continue
                num_trajectories += 1
                num_examples += len(lines)
                file.writelines(f"{line}\n" for line in lines)
        temporary.replace(output)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return ChatFileReport(
        num_examples=num_examples,
        num_trajectories=num_trajectories,
        left_out=dict(sorted(left_out.items(), key=lambda item: (-item[1], item[0]))),
    )


def _convert(
    tables: Mapping[str, pl.DataFrame],
    messages: pl.DataFrame,
    form: ChatFormat,
    split: str | None,
    min_reward: float | None,
) -> Iterator[tuple[list[str], str | None]]:
    """Each trajectory -> its lines, or why it has none."""
    key = ["trajectory_id"]
    turns_of = tables["turns"].sort("turn").partition_by(key, as_dict=True)
    messages_of = messages.partition_by(key, as_dict=True)
    for row in tables["trajectories"].sort("trajectory_id").iter_rows(named=True):
        reason = _leave_out(row, split, min_reward)
        identity = (row["trajectory_id"],)
        lines: list[str] = []
        if reason is None and identity in turns_of and identity in messages_of:
            lines, reason = _write_trajectory(turns_of[identity], messages_of[identity], form)
        if reason is None and not lines:
            reason = "no_answer"
        yield lines, reason


def _leave_out(row: Mapping[str, Any], split: str | None, min_reward: float | None) -> str | None:
    if split is not None and row["split"] != split:
        return "other_split"
    if row["usable_for"] == "none":
        return next((each for each in row["reasons"] if each in NOT_EVEN_SFT), "not_usable")
    if min_reward is not None and row["reward"] is None:
        return "no_reward"
    if min_reward is not None and row["reward"] < min_reward:
        return "below_min_reward"
    return None


def _write_trajectory(
    turns: pl.DataFrame, messages: pl.DataFrame, form: ChatFormat
) -> tuple[list[str], str | None]:
    nodes = {row["node_id"]: row for row in messages.iter_rows(named=True)}
    read: set[str] = set()
    for start in turns["input_node"].to_list():
        node = start
        while node is not None and node not in read:
            read.add(node)
            node = nodes[node]["parent_id"] if node in nodes else None
    lines = []
    for turn in turns.iter_rows(named=True):
        end = turn["output_node"]
        if end is None or end in read or turn["outcome"] != "ok":
            continue
        conversation = _read_conversation(end, nodes)
        if conversation is None:
            return [], "missing_history"
        try:
            lines.append(_write_line(conversation, turn["tool_definitions"], form))
        except UnwritableError as error:
            return [], str(error)
    return lines, None


def _read_conversation(
    node: str | None, nodes: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]] | None:
    """Messages from the beginning to a node; None where one is missing."""
    found = []
    while node is not None:
        row = nodes.get(node)
        if row is None:
            return None
        found.append(json.loads(row["message"]))
        node = row["parent_id"]
    return found[::-1]


def _write_line(conversation: list[dict[str, Any]], tools: str | None, form: ChatFormat) -> str:
    chat = write_chat(conversation)
    if form == "openai":
        chat = [{k: v for k, v in message.items() if k not in _TRL_FIELDS} for message in chat]
    line: dict[str, Any] = {"messages": chat}
    definitions = json.loads(tools) if tools else None
    if definitions:
        line["tools"] = write_tools(definitions)
    return json.dumps(line, ensure_ascii=False)
