"""Message graph -> turns rendered by the model's chat template, for turns without recorded ids.

Each turn is rendered twice: its prompt with `add_generation_prompt`, and the same with the answer.
The answer's tokens are what the second adds to the first; nothing is guessed from special tokens
in the middle of a text. Such tokens are `retokenized`: their ids may differ from the sampled ones.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from starpo_train.dataset import MessageNode, Trajectory
from starpo_train.errors import ModelError
from starpo_train.tokens import TurnTokens


def require_chat_template(tokenizer: Any, *, model_path: str) -> None:
    """Raise ModelError when the tokenizer has no chat template to render messages with."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{model_path}: the tokenizer has no chat template, and the dataset has turns without "
            "token ids that need one; add chat_template.jinja to the model folder or train on "
            "trajectories recorded with token ids."
        )


def render_turns(
    trajectory: Trajectory,
    graph: dict[str, MessageNode],
    tokenizer: Any,
    *,
    models: Sequence[str] = (),
) -> list[TurnTokens | None]:
    """Turns of a trajectory as ids; None for a turn whose messages cannot be rendered."""
    return [
        _render_turn(
            graph,
            turn.input_node,
            turn.output_node,
            tokenizer,
            number=turn.turn,
            tools=json.loads(turn.tool_definitions) if turn.tool_definitions else None,
            trained=not models or turn.model in models,
        )
        for turn in trajectory.turns
    ]


def to_chat_message(message: dict[str, Any]) -> dict[str, Any]:
    """GenAI message -> the chat message that templates expect (tool arguments as objects)."""
    chat: dict[str, Any] = {"role": message["role"]}
    texts: list[str] = []
    for part in message.get("parts", ()):
        kind = part.get("type")
        if kind == "text":
            texts.append(part.get("content") or "")
        elif kind == "reasoning":
            chat["reasoning_content"] = part.get("content")
        elif kind == "tool_call_response":
            chat["tool_call_id"] = part.get("id")
            response = part.get("response")
            texts.append(response if isinstance(response, str) else json.dumps(response))
        elif kind == "tool_call":
            function = {"name": part.get("name"), "arguments": _arguments(part.get("arguments"))}
            chat.setdefault("tool_calls", []).append(
                {"id": part.get("id"), "type": "function", "function": function}
            )
    chat["content"] = "".join(texts)
    if message.get("name") is not None:
        chat["name"] = message["name"]
    return chat


def _render_turn(
    graph: dict[str, MessageNode],
    input_node: str | None,
    output_node: str | None,
    tokenizer: Any,
    *,
    number: int,
    tools: list[Any] | None,
    trained: bool,
) -> TurnTokens | None:
    if output_node not in graph or (input_node is not None and input_node not in graph):
        return None
    history = _path_to(graph, input_node)
    answer = to_chat_message(graph[output_node].message)
    prompt = tokenizer.apply_chat_template(
        history, tools=tools, tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template([*history, answer], tools=tools, tokenize=False)
    if not whole.startswith(prompt):
        return None
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    response_ids = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id in response_ids:  # what follows it is the template's, not sampled
        last = len(response_ids) - 1 - response_ids[::-1].index(tokenizer.eos_token_id)
        response_ids = response_ids[: last + 1]
    if not response_ids or not prompt_ids:
        return None
    return TurnTokens(
        turn=number,
        prompt_ids_T=np.asarray(prompt_ids, dtype=np.int32),
        response_ids_T=np.asarray(response_ids, dtype=np.int32),
        logprobs_T=None,
        recorded=False,
        trained=trained,
    )


def _path_to(graph: dict[str, MessageNode], node_id: str | None) -> list[dict[str, Any]]:
    path: list[dict[str, Any]] = []
    while node_id is not None and node_id in graph:
        node = graph[node_id]
        path.append(to_chat_message(node.message))
        node_id = node.parent_id
    return path[::-1]


def _arguments(arguments: Any) -> Any:
    try:
        return json.loads(arguments)
    except (TypeError, ValueError):
        return arguments
