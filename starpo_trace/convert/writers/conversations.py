"""Trajectory -> conversations, each from the first message to an answer that nothing goes on from.

A conversation is one branch of the message graph. What was only read, such as a sub-agent's own
conversation in a tool's answer, is on a branch of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starpo_trace.convert.writers.chatmessages import UnwritableError, write_chat, write_tools
from starpo_trace.convert.writers.stream import Row, TrajectoryRows
from starpo_trace.mergepatch import load_json
from starpo_trace.messages import Message, dump_json

Chat = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One branch of a trajectory."""

    turn: Row
    """Turn that gave its last answer."""
    nodes: list[Row]
    """Its messages, rows of `messages`, from the beginning."""

    def write_chat(self) -> Chat:
        """The messages as chat messages.

        Raises:
            UnwritableError: see `chatmessages.write_chat`.
        """
        return write_chat(self.read_messages())

    def write_template_chat(self) -> Chat:
        """The messages as chat templates read them: no text beside calls is `""`.

        OpenAI writes null there, which templates such as Qwen's refuse.
        """
        return [
            {**message, "content": "" if message["content"] is None else message["content"]}
            for message in self.write_chat()
        ]

    def read_messages(self) -> list[Message]:
        """The messages as they were recorded."""
        return [load_json(node["message"]) for node in self.nodes]

    def write_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the last answer could have called; None without any.

        Raises:
            UnwritableError: `unwritable_tool`.
        """
        text = self.turn["tool_definitions"]
        try:
            definitions = load_json(text) if text else None
        except ValueError:
            raise UnwritableError("unwritable_tool") from None
        return write_tools(definitions) if definitions else None


def list_conversations(trajectory: TrajectoryRows) -> list[Conversation]:
    """Trajectory -> its conversations, in the order of their last answers.

    Raises:
        UnwritableError: `missing_history`: a message of one was never recorded.
    """
    nodes = trajectory.nodes
    read = _find_read(trajectory.turns, nodes)
    found: list[Conversation] = []
    for turn in trajectory.turns:
        end = turn["output_node"]
        if end is None or end in read or turn["outcome"] != "ok":
            continue
        found.append(Conversation(turn=turn, nodes=_walk_back(end, nodes)))
    return found


def split_prompt(chat: Chat) -> tuple[Chat, Chat]:
    """Chat -> the messages before its first answer, and the rest."""
    first = next((i for i, each in enumerate(chat) if each["role"] == "assistant"), len(chat))
    return chat[:first], chat[first:]


def encode_json(value: Any) -> bytes:
    """Value -> one line of JSON; half a character is its escape."""
    return dump_json(value).encode()


def _find_read(turns: list[Row], nodes: Mapping[str, Row]) -> set[str]:
    """Nodes that some prompt holds."""
    read: set[str] = set()
    for turn in turns:
        node = turn["input_node"]
        while node is not None and node not in read:
            read.add(node)
            node = nodes[node]["parent_id"] if node in nodes else None
    return read


def _walk_back(node: str | None, nodes: Mapping[str, Row]) -> list[Row]:
    path: list[Row] = []
    while node is not None:
        row = nodes.get(node)
        if row is None or len(path) > len(nodes):
            raise UnwritableError("missing_history")
        path.append(row)
        node = row["parent_id"]
    return path[::-1]
