"""Trajectories -> JSON lines of conversations, as fine-tuning on them reads.

`openai`: OpenAI's fine-tuning format. `trl`: TRL's conversational format, with reasoning. What they
cannot hold is left out by name: token ids, log-probabilities, rewards. Answers that a run only read
have weight 0 in OpenAI's; TRL's has no such field.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from starpo_trace.convert.writers.chatmessages import UnwritableError
from starpo_trace.convert.writers.conversations import (
    Chat,
    Conversation,
    count_read_answers,
    encode_json,
    list_conversations,
)
from starpo_trace.convert.writers.report import Tally
from starpo_trace.convert.writers.stream import TrajectoryRows

_REASONING: Final = frozenset({"reasoning_content"})


def write_chat_lines(
    trajectories: Iterable[TrajectoryRows], tally: Tally, *, with_reasoning: bool
) -> Iterator[bytes]:
    """Trajectories -> a line for each of their conversations."""
    for each in trajectories:
        try:
            conversations = list_conversations(each)
            lines = [
                encode_json(_build_line(conversation, with_reasoning=with_reasoning))
                for conversation in conversations
            ]
        except UnwritableError as error:
            tally.left_out[str(error)] += 1
            continue
        if not lines:
            tally.left_out["no_answer"] += 1
            continue
        if with_reasoning:
            count_read_answers(conversations, tally)
        tally.num_trajectories += 1
        tally.num_written += len(lines)
        yield from lines


def _build_line(conversation: Conversation, *, with_reasoning: bool) -> dict[str, Any]:
    chat = (
        conversation.write_template_chat()
        if with_reasoning
        else drop_reasoning(conversation.write_chat(has_weights=True))
    )
    line: dict[str, Any] = {"messages": chat}
    tools = conversation.write_tools()
    if tools:
        line["tools"] = tools
    return line


def drop_reasoning(chat: Chat) -> Chat:
    """Chat -> the same without what the model thought."""
    return [{k: v for k, v in each.items() if k not in _REASONING} for each in chat]
