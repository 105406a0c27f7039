"""Trajectories -> Parquet files that verl reads: prompts to play again, conversations to imitate.

Columns of Parquet have one type for all rows. What that would damage is kept from it: the schema of
every tool would get the parameters of all others, so the tools are JSON text, and a conversation
with images, whose contents are lists, is left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import orjson
import polars as pl

from starpo_trace.convert.writers.chatmessages import UnwritableError
from starpo_trace.convert.writers.conversations import (
    Chat,
    Conversation,
    count_read_answers,
    encode_json,
    list_conversations,
)
from starpo_trace.convert.writers.report import Tally
from starpo_trace.convert.writers.stream import Row, TrajectoryRows
from starpo_trace.convert.writers.wholefile import Spool
from starpo_trace.messages import dump_json

_CALL: Final = pl.Struct(
    {
        "id": pl.String,
        "type": pl.String,
        "function": pl.Struct({"name": pl.String, "arguments": pl.String}),
    }
)
_FIELD_TYPES: Final[dict[str, pl.DataType]] = {
    "role": pl.String(),
    "content": pl.String(),
    "name": pl.String(),
    "reasoning_content": pl.String(),
    "refusal": pl.String(),
    "tool_calls": pl.List(_CALL),
    "tool_call_id": pl.String(),
}
_ALWAYS: Final = frozenset({"role", "content"})


@dataclass(slots=True, kw_only=True)
class _Prompt:
    """A prompt of a task, and what became of the attempts at it."""

    number: int
    """Where it is in the spool."""
    task_id: str
    """The task."""
    split: str
    """Its split."""
    tools: set[str] = field(default_factory=set)
    """Names of the tools that the runs had."""
    rewards: list[float] = field(default_factory=list)
    """Rewards of the attempts that have one."""
    num_attempts: int = 0
    """Attempts that began with it."""

    def add_attempt(self, reward: float | None, tools: Iterable[str]) -> None:
        """Count one more attempt."""
        self.num_attempts += 1
        self.tools.update(tools)
        if reward is not None:
            self.rewards.append(reward)


def write_verl_prompts(
    trajectories: Iterable[TrajectoryRows],
    tally: Tally,
    spool: Spool,
    output: Path,
    data_source: str,
) -> None:
    """Trajectories -> a row for each prompt of each task, in verl's form for RL.

    The dataset knows no right answers: `ground_truth` is the task's id, by which the reward function
    finds what it needs. `extra_info` says how the recorded attempts fared.
    """
    prompts: dict[tuple[str, bytes], _Prompt] = {}
    for each in trajectories:
        try:
            prompt, tools = _read_prompt(each)
        except UnwritableError as error:
            tally.left_out[str(error)] += 1
            continue
        tally.num_trajectories += 1
        task = each.row["task_id"]
        key = (task, blake2b(encode_json(prompt), digest_size=16).digest())
        if key not in prompts:
            split = each.row["split"]
            prompts[key] = _Prompt(number=spool.add(prompt), task_id=task, split=split)
        prompts[key].add_attempt(each.row["reward"], tools)
    tally.num_written = len(prompts)
    # A tool that only some rows named would be null in the others, which verl takes for its options.
    names = {tuple(sorted(each.tools)) for each in prompts.values()}
    shared = names.pop() if len(names) == 1 else ()
    rows = (
        _describe_prompt(index, prompts[key], spool, data_source, shared)
        for index, key in enumerate(sorted(prompts))
    )
    _sink_rows(rows, output, lambda: _prompt_schema(spool, prompts.values(), shared))


def write_verl_sft(trajectories: Iterable[TrajectoryRows], tally: Tally, output: Path) -> None:
    """Trajectories -> a row for each conversation: `messages` and, as JSON text, `tools`."""
    fields: set[str] = set()

    def convert() -> Iterator[Row]:
        for each in trajectories:
            try:
                conversations = list_conversations(each)
                rows = _write_conversations(conversations)
            except UnwritableError as error:
                tally.left_out[str(error)] += 1
                continue
            count_read_answers(conversations, tally)
            tally.num_trajectories += 1
            tally.num_written += len(rows)
            for row in rows:
                fields.update(*row["messages"])
                yield row

    _sink_rows(convert(), output, lambda: {"messages": _chat_type(fields), "tools": pl.String()})


def _read_prompt(trajectory: TrajectoryRows) -> tuple[Chat, list[str]]:
    """A trajectory -> what its last conversation began with, and the names of its tools."""
    if trajectory.row["task_id"] is None:
        raise UnwritableError("no_task")
    conversations = list_conversations(trajectory)
    if not conversations:
        raise UnwritableError("no_answer")
    prompt = conversations[-1].write_template_chat()[: conversations[-1].count_prompt()]
    if not prompt:
        raise UnwritableError("no_prompt")
    _check_types(prompt)
    tools = conversations[-1].write_tools() or ()
    return prompt, [tool["function"]["name"] for tool in tools]


def _write_conversations(conversations: Iterable[Conversation]) -> list[Row]:
    rows: list[Row] = []
    for conversation in conversations:
        chat = conversation.write_template_chat()
        _check_types(chat)
        tools = conversation.write_tools()
        row = {"messages": chat, "tools": dump_json(tools) if tools else None}
        encode_json(row)
        rows.append(row)
    if not rows:
        raise UnwritableError("no_answer")
    return rows


def _check_types(chat: Chat) -> None:
    """Refuse what a column of texts cannot hold.

    Raises:
        UnwritableError: `unwritable_part`: a message of several parts, such as one with an image;
            `half_character`: a text that is none in UTF-8.
    """
    if any(isinstance(message.get("content"), list) for message in chat):
        raise UnwritableError("unwritable_part")
    try:
        orjson.dumps(chat)
    except TypeError:
        raise UnwritableError("half_character") from None


def _describe_prompt(
    index: int, prompt: _Prompt, spool: Spool, data_source: str, tools: Sequence[str]
) -> Row:
    rewards = prompt.rewards
    extra: dict[str, Any] = {
        "index": index,
        "split": prompt.split,
        "task_id": prompt.task_id,
        "num_attempts": prompt.num_attempts,
        "mean_reward": sum(rewards) / len(rewards) if rewards else None,
        "need_tools_kwargs": bool(tools),
    }
    if tools:
        kwargs = {"create_kwargs": {"ground_truth": prompt.task_id}}
        extra["tools_kwargs"] = dict.fromkeys(tools, kwargs)
    return {
        "data_source": data_source,
        "prompt": spool.read(prompt.number),
        "ability": "agent",
        "reward_model": {"style": "rule", "ground_truth": prompt.task_id},
        "agent_name": "tool_agent" if prompt.tools else "single_turn_agent",
        "extra_info": extra,
    }


def _prompt_schema(
    spool: Spool, prompts: Iterable[_Prompt], tools: Sequence[str]
) -> dict[str, pl.DataType]:
    fields = {name for each in prompts for message in spool.read(each.number) for name in message}
    extra: dict[str, pl.DataType] = {
        "index": pl.Int64(),
        "split": pl.String(),
        "task_id": pl.String(),
        "num_attempts": pl.Int64(),
        "mean_reward": pl.Float64(),
        "need_tools_kwargs": pl.Boolean(),
    }
    if tools:
        kwargs = pl.Struct({"create_kwargs": pl.Struct({"ground_truth": pl.String()})})
        extra["tools_kwargs"] = pl.Struct(dict.fromkeys(tools, kwargs))
    return {
        "data_source": pl.String(),
        "prompt": _chat_type(fields),
        "ability": pl.String(),
        "reward_model": pl.Struct({"style": pl.String(), "ground_truth": pl.String()}),
        "agent_name": pl.String(),
        "extra_info": pl.Struct(extra),
    }


def _chat_type(fields: Iterable[str]) -> pl.DataType:
    """Names of the fields that messages have -> type of a column of chats, without any other."""
    used = _ALWAYS.union(fields)
    return pl.List(pl.Struct({n: kind for n, kind in _FIELD_TYPES.items() if n in used}))


def _sink_rows(
    rows: Iterable[Row], output: Path, schema: Callable[[], Mapping[str, pl.DataType]]
) -> None:
    """Rows -> Parquet; the schema is asked for when all rows are known. Rows wait in a file."""
    waiting = output.with_name(f"{output.name}.lines")
    num_rows = 0
    try:
        with waiting.open("wb") as file:
            for num_rows, row in enumerate(rows, start=1):  # noqa: B007
                file.write(encode_json(row) + b"\n")
        if num_rows:
            pl.scan_ndjson(waiting, schema=pl.Schema(schema())).sink_parquet(output)
        else:
            pl.DataFrame(schema=pl.Schema(schema())).write_parquet(output)
    finally:
        waiting.unlink(missing_ok=True)
