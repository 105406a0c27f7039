"""Trajectory -> conversations, each from the first message to an answer that nothing goes on from.

A conversation is one branch of the message graph. What was only read, such as a sub-agent's own
conversation in a tool's answer, is on a branch of its own.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starpo_trace.convert.writers.chatmessages import UnwritableError, write_each, write_tools
from starpo_trace.convert.writers.report import Tally
from starpo_trace.convert.writers.stream import Row, TrajectoryRows
from starpo_trace.mergepatch import load_json
from starpo_trace.messages import Message, dump_json

Chat = list[dict[str, Any]]

READ_ANSWERS: Final = "that some answers were only read, so that trainers learn them too"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One branch of a trajectory."""

    turn: Row
    """Turn that gave its last answer."""
    nodes: list[Row]
    """Its messages, rows of `messages`, from the beginning."""
    own: frozenset[str]
    """Nodes of the answers that it teaches: given by a call of the run that ended well, and in no
    earlier conversation. Others, such as demonstrations in a prompt, were only read."""

    def write_chat(self, *, has_weights: bool = False) -> Chat:
        """The messages as chat messages; with weights, answers that it does not teach have 0.

        Raises:
            UnwritableError: see `chatmessages.write_chat`.
        """
        chat: Chat = []
        for node, written in self._write_each():
            is_read = has_weights and node["node_id"] not in self.own
            chat += [
                {**each, "weight": 0} if is_read and each["role"] == "assistant" else each
                for each in written
            ]
        return chat

    def count_prompt(self) -> int:
        """Chat messages before the first answer that the run gave, demonstrations included."""
        num_read = 0
        for node, written in self._write_each():
            if node["sampled_turn"] is not None:
                break
            num_read += len(written)
        return num_read

    def has_read_answers(self) -> bool:
        """Whether there are answers that it does not teach."""
        return any(
            each["role"] == "assistant" and node["node_id"] not in self.own
            for node, written in self._write_each()
            for each in written
        )

    def write_template_chat(self) -> Chat:
        """The messages as chat templates read them: no text beside calls is `""`.

        OpenAI writes null there, which templates such as Qwen's refuse.
        """
        return [
            {**message, "content": "" if message["content"] is None else message["content"]}
            for message in self.write_chat()
        ]

    def _write_each(self) -> Iterator[tuple[Row, Chat]]:
        return zip(self.nodes, write_each(self.read_messages()), strict=True)

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
    given = {turn["output_node"] for turn in trajectory.turns if turn["outcome"] == "ok"}
    passed = _find_read(trajectory.turns, nodes)
    found: list[Conversation] = []
    for turn in trajectory.turns:
        end = turn["output_node"]
        if end is None or end in passed or turn["outcome"] != "ok":
            continue
        passed.add(end)  # an answer that was given twice, word for word
        path = _walk_back(end, nodes)
        own = frozenset(node["node_id"] for node in path) & given
        found.append(Conversation(turn=turn, nodes=path, own=own))
        given -= own
    return found


def count_read_answers(conversations: Iterable[Conversation], tally: Tally) -> None:
    """Count a trajectory whose form cannot say which answers were only read."""
    if any(each.has_read_answers() for each in conversations):
        tally.losses[READ_ANSWERS] += 1


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
