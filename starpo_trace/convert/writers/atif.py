"""Trajectories -> documents of the Agent Trajectory Interchange Format (ATIF 1.7), one a line.

A document is the conversation that the trajectory's last answer ended; the others, such as those of
sub-agents, are its `subagent_trajectories`. What ATIF has no field for is under `extra`: the task,
the verdict, rewards and states. An answer that no turn of the trajectory gave, and messages that an
earlier document already holds, are marked as copied context.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from starpo_trace.convert.writers.atifsteps import StepWriter
from starpo_trace.convert.writers.chatmessages import UnwritableError
from starpo_trace.convert.writers.conversations import (
    Conversation,
    encode_json,
    list_conversations,
)
from starpo_trace.convert.writers.report import Tally
from starpo_trace.convert.writers.stream import Row, TrajectoryRows
from starpo_trace.convert.writers.times import format_time
from starpo_trace.convert.writers.tokens import restore_prompts
from starpo_trace.mergepatch import load_json

ATIF_VERSION: Final = "ATIF-v1.7"

_ABOUT: Final = (
    *("task_id", "attempt", "seed", "policy_id", "environment_name", "environment_version"),
    *("cohort", "conversation_id", "end", "usable_for", "reasons", "split"),
)
_OF_REWARD: Final = (
    *("reward_id", "name", "value", "scope", "kind", "source", "min", "max", "turn", "step"),
    *("judge_id", "explanation", "trusted", "superseded"),
)


def write_atif(trajectories: Iterable[TrajectoryRows], tally: Tally) -> Iterator[bytes]:
    """Trajectories -> a document for each."""
    for each in trajectories:
        try:
            line = encode_json(build_document(each))
        except UnwritableError as error:
            tally.left_out[str(error)] += 1
            continue
        tally.num_trajectories += 1
        tally.num_written += 1
        yield line


def build_document(trajectory: TrajectoryRows) -> dict[str, Any]:
    """Trajectory -> its document.

    Raises:
        UnwritableError: it has no answer, or one of its conversations has no place in a chat.
    """
    conversations = list_conversations(trajectory)
    if not conversations:
        raise UnwritableError("no_answer")
    prompts = restore_prompts(trajectory.turns)
    *others, main = (_go_on(each, trajectory) for each in conversations)
    writer = StepWriter(turns=trajectory.turns, prompts=prompts)
    document = _build_one(trajectory, main, writer, trajectory.id)
    embedded = [
        _build_one(trajectory, other, writer, f"{trajectory.id}#{number}")
        for number, other in enumerate(others, start=1)
    ]
    document["final_metrics"] = _drop_nulls(
        {
            "total_prompt_tokens": trajectory.row["input_tokens"],
            "total_completion_tokens": trajectory.row["output_tokens"],
            "total_steps": len(document["steps"]),
            "extra": _drop_nulls({"reward": trajectory.row["reward"]}) or None,
        }
    )
    document["extra"] = _describe_run(trajectory)
    if embedded:
        document["subagent_trajectories"] = embedded
    return document


def _go_on(conversation: Conversation, trajectory: TrajectoryRows) -> Conversation:
    """A conversation -> with what was seen after its last answer, where that is one way on."""
    following: dict[str | None, list[Row]] = {}
    for node in trajectory.nodes.values():
        if node["sampled_turn"] is None:
            following.setdefault(node["parent_id"], []).append(node)
    nodes = list(conversation.nodes)
    while len(found := following.get(nodes[-1]["node_id"], ())) == 1:
        nodes += found
    return replace(conversation, nodes=nodes)


def _build_one(
    trajectory: TrajectoryRows, conversation: Conversation, writer: StepWriter, document_id: str
) -> dict[str, Any]:
    agent: dict[str, Any] = {
        "name": trajectory.row["agent_name"] or "agent",
        "version": trajectory.row["policy_id"] or "unknown",
        "model_name": conversation.turn["model"],
        "tool_definitions": conversation.write_tools(),
    }
    return {
        "schema_version": ATIF_VERSION,
        "session_id": trajectory.id,
        "trajectory_id": document_id,
        "agent": _drop_nulls(agent),
        "steps": writer.write_steps(conversation),
    }


def _describe_run(trajectory: TrajectoryRows) -> dict[str, Any]:
    """What a document says of the run outside of its fields."""
    row = trajectory.row
    extra = {name: row[name] for name in _ABOUT}
    extra["started_at"] = format_time(row["started_ns"])
    extra["ended_at"] = format_time(row["ended_ns"])
    extra["rewards"] = [
        _drop_nulls({name: each[name] for name in _OF_REWARD}) for each in trajectory.rewards
    ]
    extra["states"] = [_describe_state(each) for each in trajectory.states]
    return _drop_nulls({name: None if value == [] else value for name, value in extra.items()})


def _describe_state(state: Row) -> dict[str, Any]:
    return _drop_nulls(
        {"step": state["step"], "name": state["name"], "value": load_json(state["value"])}
    )


def _drop_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
