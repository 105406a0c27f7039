"""Message graph -> turns rendered by the model's chat template, and what that did to them.

Each turn is rendered twice: its prompt, up to where the answer begins, and the same with the answer.
The answer is what the second adds to the first, up to its end token. Such tokens are `retokenized`:
their ids may differ from the sampled ones. What a template drops, adds or rewrites is a finding of
the trajectory; docs/tokens.md says what each means.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from starpo_trace.convert.writers.chatmessages import UnwritableError, write_each, write_tools
from starpo_train.chattemplate import Chat, ChatTemplate, TemplateRefusalError, describe_shape
from starpo_train.dataset import MessageNode, Trajectory, Turn
from starpo_train.errors import ModelError
from starpo_train.findings import FAULTS, LOSSES
from starpo_train.retokenize import Retokenizer
from starpo_train.tokens import TurnTokens


@dataclass(slots=True, kw_only=True)
class RenderedTrajectory:
    """A trajectory's turns as ids, and what rendering did to them."""

    turns: list[TurnTokens | None] = field(default_factory=list)
    """None where there is no answer to train, or a fault."""
    findings: Counter[str] = field(default_factory=Counter)
    """Finding -> turns that have it."""
    examples: dict[str, str] = field(default_factory=dict)
    """Finding -> what the first one looked like, where that can be shown."""

    def find_reason(self, *, keep_lossy: bool) -> str | None:
        """Why it is not to be trained on; None when it is."""
        barred = FAULTS if keep_lossy else FAULTS + LOSSES
        return next((name for name in barred if name in self.findings), None)

    def note(self, name: str, example: str = "") -> None:
        """Count a finding once for a turn."""
        self.findings[name] += 1
        if example:
            self.examples.setdefault(name, _shorten(example))


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedTurn:
    """One turn as text."""

    prompt: str
    answer: str
    """Up to the end token."""
    whole: str
    """Prompt and answer as the template closes them: what a later prompt should begin with."""


class TurnRenderer:
    """Renders turns with one tokenizer and its chat template.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, *, model_path: str) -> None:
        require_chat_template(tokenizer, model_path=model_path)
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self.retokenizer = Retokenizer(tokenizer)

    def render_trajectory(
        self,
        trajectory: Trajectory,
        graph: dict[str, MessageNode],
        *,
        models: Sequence[str] = (),
    ) -> RenderedTrajectory:
        """Turns of a trajectory that would be trained, rendered; others are None."""
        while True:
            whole, result = self._render_all(trajectory, graph, models)
            if self.retokenizer.check(whole):
                return result

    def _render_all(
        self, trajectory: Trajectory, graph: dict[str, MessageNode], models: Sequence[str]
    ) -> tuple[str, RenderedTrajectory]:
        """Every turn; and the longest text, to check the retokenizer with."""
        result = RenderedTrajectory()
        done: dict[str, RenderedTurn] = {}  # node of an answer -> its turn
        longest = ""
        for turn in trajectory.turns:
            result.turns.append(None)
            if turn.output_node is None or (models and turn.model not in models):
                continue
            try:
                rendered, history = self.render_turn(turn, graph, result)
            except UnwritableError as error:
                result.note(str(error))
                continue
            except TemplateRefusalError as error:
                result.note("template_refuses", str(error))
                continue
            if rendered is None:
                continue
            self._compare_history(turn, graph, done, rendered, result)
            self._note_losses(history, turn.tool_definitions is not None, result)
            done[turn.output_node] = rendered
            longest = max(longest, rendered.prompt + rendered.answer, key=len)
            result.turns[-1] = self._tokenize(turn, rendered, result)
        return longest, result

    def render_turn(
        self, turn: Turn, graph: dict[str, MessageNode], result: RenderedTrajectory
    ) -> tuple[RenderedTurn | None, Chat]:
        """One turn as text, with its prompt's messages; None for a fault, which `result` then has.

        Raises:
            UnwritableError: its messages have no form that templates read; the text is the reason.
            TemplateRefusalError: the template raises.
        """
        path = None if turn.output_node is None else find_path(graph, turn.output_node)
        if path is None or path[:-1] != (find_path(graph, turn.input_node) or []):
            result.note("messages_missing")
            return None, []
        chats = list(write_each([graph[node].message for node in path]))
        history = [message for chat in chats[:-1] for message in chat]
        (answer,) = chats[-1]
        if any(isinstance(message["content"], list) for message in (*history, answer)):
            result.note("content_not_text")
            return None, history
        tools = write_tools(json.loads(turn.tool_definitions)) if turn.tool_definitions else None
        time_ns = turn.started_ns
        prompt = self.template.render(history, tools, asks=True, time_ns=time_ns)
        whole = self.template.render([*history, answer], tools, asks=False, time_ns=time_ns)
        if not whole.startswith(prompt):
            base = self.template.render(history, tools, asks=False, time_ns=time_ns)
            opens = whole.startswith(base) and prompt.startswith(base)
            name = "template_opens_answer" if opens else "template_rewrites_prompt"
            result.note(
                name, f"{prompt[-60:]!r} before {whole[len(base) :][:60]!r}" if opens else ""
            )
            return None, history
        text, is_closed = self.template.cut_answer(whole[len(prompt) :])
        if not is_closed:
            result.note("template_leaves_answer_open", text[-60:])
        self._note_answer(answer, text, result)
        self._note_additions(history, answer, result)
        return RenderedTurn(prompt=prompt, answer=text, whole=whole), history

    def _note_answer(self, answer: dict[str, Any], text: str, result: RenderedTrajectory) -> None:
        """Compare the messages' own words with what is there of them."""
        if (answer.get("content") or "").strip() not in text:
            result.note("template_changes_answer", text)
        reasoning = (answer.get("reasoning_content") or "").strip()
        if reasoning not in text:
            result.note("template_drops_reasoning", reasoning)
        rest = text.replace(reasoning, "", 1).replace((answer.get("content") or "").strip(), "", 1)
        forms = {_find_call(call["function"], rest) for call in answer.get("tool_calls", ())}
        if None in forms:
            result.note("template_drops_tool_calls", text)
        if "rewritten" in forms:
            result.note("template_rewrites_arguments", text)

    def _note_additions(
        self, history: Chat, answer: dict[str, Any], result: RenderedTrajectory
    ) -> None:
        template = self.template
        if template.added_to_answer and not answer.get("reasoning_content"):
            result.note("template_adds_to_answer", template.added_to_answer)
        if template.default_system and history and history[0]["role"] not in _SYSTEM_ROLES:
            result.note("template_adds_system", template.default_system)
        if template.writes_date:
            result.note("template_adds_date")
        contents = (message.get("content") or "" for message in (*history[-1:], answer))
        if any(self.retokenizer.has_control_token(content) for content in contents):
            result.note("special_token_in_text")

    def _note_losses(self, history: Chat, has_tools: bool, result: RenderedTrajectory) -> None:  # noqa: FBT001
        for name in self.template.find_losses(describe_shape(history), has_tools):
            result.note(name)

    def _compare_history(
        self,
        turn: Turn,
        graph: dict[str, MessageNode],
        done: dict[str, RenderedTurn],
        rendered: RenderedTurn,
        result: RenderedTrajectory,
    ) -> None:
        """Whether the last answer in the prompt stands there as it was given."""
        for node in reversed(find_path(graph, turn.input_node) or []):
            if node in done:
                before = done[node]
                given = before.prompt + before.answer
                if not rendered.prompt.startswith(given):
                    at = _find_difference(given, rendered.prompt)
                    at = max(0, at - 10)
                    was, now = given[at : at + 50], rendered.prompt[at : at + 50]
                    result.note("template_rewrites_history", f"{was!r} became {now!r}")
                return

    def _tokenize(
        self, turn: Turn, rendered: RenderedTurn, result: RenderedTrajectory
    ) -> TurnTokens | None:
        encode = self.retokenizer.encode
        prompt_ids_T, response_ids_T = encode(rendered.prompt), encode(rendered.answer)
        if not len(prompt_ids_T) or not len(response_ids_T):
            result.note("no_answer")
            return None
        whole_T = encode(rendered.prompt + rendered.answer)
        if not np.array_equal(whole_T, np.concatenate([prompt_ids_T, response_ids_T])):
            result.note("boundary_drift", rendered.prompt[-20:] + rendered.answer[:20])
        return TurnTokens(
            turn=turn.turn,
            prompt_ids_T=prompt_ids_T,
            response_ids_T=response_ids_T,
            logprobs_T=None,
            recorded=False,
            trained=True,
        )


def require_chat_template(tokenizer: Any, *, model_path: str) -> None:
    """Raise ModelError when the tokenizer has no chat template to render messages with."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"{model_path}: the tokenizer has no chat template, and the dataset has turns without "
            "token ids that need one; add chat_template.jinja to the model folder or train on "
            "trajectories recorded with token ids."
        )


def find_path(graph: dict[str, MessageNode], node: str | None) -> list[str] | None:
    """Nodes from the beginning of a history to one of them; None when any was not recorded."""
    path: list[str] = []
    while node is not None:
        if node not in graph:
            return None
        path.append(node)
        node = graph[node].parent_id
    return path[::-1]


_SYSTEM_ROLES: Final = ("system", "developer")


def _find_call(function: dict[str, Any], text: str) -> str | None:
    """How a call stands in an answer's text: `verbatim`, `rewritten`, or not at all."""
    if function["name"] not in text:
        return None
    if function["arguments"] in text:
        return "verbatim"
    try:
        values = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return None
    return "rewritten" if all(leaf in text for leaf in _list_leaves(values)) else None


def _list_leaves(value: Any) -> list[str]:
    """Names and values of JSON as templates write them, inside of quotes or not."""
    if isinstance(value, dict):
        inner = [leaf for each in value.values() for leaf in _list_leaves(each)]
        return [*map(_encode, value), *inner]
    if isinstance(value, list):
        return [leaf for each in value for leaf in _list_leaves(each)]
    return [_encode(value)]


def _encode(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text[1:-1] if isinstance(value, str) else text


def _find_difference(left: str, right: str) -> int:
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[:middle] == right[:middle] else (low, middle - 1)
    return low


def _shorten(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
