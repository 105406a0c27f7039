"""Chat messages -> prompt token ids, through the model's own chat template.

Templates disagree on what they accept, so each is asked with a small conversation which forms of
`content` and `arguments` it renders without loss. What a template cannot express at all (tools,
tool calls, reasoning beside tool calls) is written into the text of its messages instead.
"""

import json
from dataclasses import dataclass
from typing import Any

import jinja2

from starpo_train.errors import ModelError
from starpo_train.serve.toolparse import CALL_CLOSE, CALL_OPEN, THINK_CLOSE, THINK_OPEN

_PROBE_TOOL = "probe_tool_7c1"
_PROBE_ARGUMENTS = '{"probe_key":  "probe_value"}'
_TOOLS_TEXT = (
    "You may call these tools:\n{tools}\nTo call one, write "
    '<tool_call>{{"name": "...", "arguments": {{...}}}}</tool_call>'
)


class TemplateError(ValueError):
    """The chat template refuses these messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A rendered conversation."""

    text: str
    ids: list[int]
    thinking: bool
    """The prompt ends inside an open `<think>`."""


class ChatRenderer:
    """Renders conversations with a tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer.
        name: the model's path, for errors.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                f"model {name!r} has no chat template, so it cannot answer chat requests: serve an "
                "instruction-tuned model, or add a chat_template.jinja file to the folder"
            )
        self._tokenizer = tokenizer
        self.knows_tools = self._probe_tools()
        self._call_form = self._probe_calls()
        self._knows_tool_role = self._call_form is not None or self._probe_tool_role()

    @property
    def knows_calls(self) -> bool:
        """The template renders assistant messages with tool calls."""
        return self._call_form is not None

    def render_chat(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> Prompt:
        """OpenAI messages and tools -> the prompt that asks for the next answer.

        Raises:
            TemplateError: the template refuses the messages.
        """
        text = self.render_text(messages, tools)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return Prompt(text=text, ids=ids, thinking=text.rstrip().endswith(THINK_OPEN))

    def render_text(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
        """The prompt's text.

        Raises:
            TemplateError: the template refuses the messages.
        """
        messages = [self._adapt(message) for message in messages]
        if tools and not self.knows_tools:
            messages = _add_tools_text(messages, tools)
            tools = None
        return self._apply(messages, tools)

    def _apply(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise TemplateError(f"the chat template refuses these messages: {error}") from error

    def _adapt(self, message: dict[str, Any]) -> dict[str, Any]:
        """One OpenAI message -> the form this template renders without loss."""
        message = {**message, "content": _join_text(message.get("content"))}
        if message["role"] == "tool" and not self._knows_tool_role:
            content = f"<tool_response>{message['content']}</tool_response>"
            return {"role": "user", "content": content}
        calls = message.get("tool_calls")
        if message["role"] != "assistant" or not calls:
            return message
        if self._call_form is None:
            return {"role": "assistant", "content": write_answer(message)}
        parsed, empty = self._call_form
        if not message["content"]:
            message["content"] = empty
        message["tool_calls"] = [_adapt_call(call, parsed=parsed) for call in calls]
        return message

    def _probe_tools(self) -> bool:
        tool = {
            "type": "function",
            "function": {
                "name": _PROBE_TOOL,
                "description": "",
                "parameters": {"type": "object", "properties": {}},
            },
        }
        try:
            return _PROBE_TOOL in self._apply([{"role": "user", "content": "x"}], [tool])
        except TemplateError:
            return False

    def _probe_tool_role(self) -> bool:
        messages = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "y"},
            {"role": "tool", "tool_call_id": "call_probe1", "content": _PROBE_TOOL},
        ]
        try:
            return _PROBE_TOOL in self._apply(messages, None)
        except TemplateError:
            return False

    def _probe_calls(self) -> tuple[bool, str | None] | None:
        """-> (arguments go in parsed, content of a message that only calls), None: no way."""
        for parsed in (False, True):
            for empty in ("", None):
                call = {
                    "id": "call_probe1",
                    "type": "function",
                    "function": {"name": _PROBE_TOOL, "arguments": _PROBE_ARGUMENTS},
                }
                assistant = {
                    "role": "assistant",
                    "content": empty,
                    "tool_calls": [_adapt_call(call, parsed=parsed)],
                }
                result = {"role": "tool", "tool_call_id": "call_probe1", "content": "y"}
                try:
                    text = self._apply([{"role": "user", "content": "x"}, assistant, result], None)
                except TemplateError:
                    continue
                expected = '"probe_key": "probe_value"' if parsed else _PROBE_ARGUMENTS
                if _PROBE_TOOL in text and expected in text:
                    return parsed, empty
        return None


def write_answer(message: dict[str, Any]) -> str:
    """An assistant message -> the raw text that `toolparse` would read as this message."""
    text = ""
    if message.get("reasoning_content"):
        text += f"{THINK_OPEN}{message['reasoning_content']}{THINK_CLOSE}"
    text += message.get("content") or ""
    for call in message.get("tool_calls") or ():
        function = call["function"]
        name = json.dumps(function["name"], ensure_ascii=False)
        text += f'{CALL_OPEN}{{"name": {name}, "arguments": {function["arguments"]}}}{CALL_CLOSE}'
    return text


def _adapt_call(call: dict[str, Any], *, parsed: bool) -> dict[str, Any]:
    function = dict(call["function"])
    if parsed:
        try:
            function["arguments"] = json.loads(function["arguments"])
        except (
            ValueError,
            TypeError,
            RecursionError,
        ):  # stays the malformed string that the model wrote
            return call
    return {**call, "function": function}


def _join_text(content: Any) -> Any:
    """Content parts -> one string; None stays None only until the message is adapted."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content if content is not None else ""


def _add_tools_text(messages: list[dict[str, Any]], tools: list[Any]) -> list[dict[str, Any]]:
    functions = "\n".join(
        json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools
    )
    text = _TOOLS_TEXT.format(tools=functions)
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
