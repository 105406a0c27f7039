"""Chat messages and tools -> text, by a tokenizer's chat template that is asked what it keeps.

A template is a program of its own: it may leave out calls, tools, results or reasoning, write a
missing text as "None", refuse a role, or add a system prompt and the date. Nothing is read off its
source: conversations of sentinels, words that occur nowhere else, are rendered and looked for.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import jinja2

Chat = list[dict[str, Any]]
"""Messages in the form that templates read: OpenAI's, arguments as JSON text."""

Shape = tuple[tuple[str, bool, bool, int], ...]
"""Of a conversation: role, has a text, has reasoning, number of calls, of each message."""

_ABSENT: Final = object()
_CALL_FORMS: Final = tuple(
    (parsed, empty) for empty in ("", None, _ABSENT) for parsed in (False, True)
)
_DATE_CODES: Final = ("-d", "-m", "-H", "-I", *"aAbBdmyYHIMSpjfFTDcxXzZ")
_CLOCK: Final = (
    "{%- macro strftime_now(format) -%}{%- set ns = namespace(text=format) -%}"
    "{%- for code, text in zq_date.items() -%}{%- set ns.text = ns.text.replace(code, text) -%}"
    "{%- endfor -%}{{- ns.text -}}{%- endmacro -%}"
)
"""Instead of the clock's time, which templates can ask for."""
_LONG_ID: Final = "call_0123456789abcdefghijklmn"
_ARGUMENTS: Final = '{"zqkey":  "zqvalue"}'


class TemplateRefusalError(ValueError):
    """The template cannot render the messages; the text is what it says."""


class ChatTemplate:
    """A tokenizer's chat template, and the forms in which it renders most."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._parses_arguments, self._empty = False, ""
        self._shortens_ids, self._knows_developer = False, True
        self.writes_date = False
        self._choose_forms()
        self._knows_developer = "zqdev" in self._try([_text("developer", "zqdev"), _USER])
        self.default_system = self._find_default_system()
        """Text that stands where no system message is; None without one."""
        self.added_to_answer = self._find_added()
        """Text before an answer that has no reasoning, such as an empty `<think>`."""
        self.writes_date = "zqdate" in self._try([_USER], date="zqdate")
        closing = self._try([_USER, _ANSWER]).partition("zqanswer")[2]
        ends = {str(token) for token in tokenizer.added_tokens_encoder if str(token) in closing}
        self._end_tokens = ends | {str(tokenizer.eos_token)}
        self.find_losses = lru_cache(maxsize=4096)(self._find_losses)

    def render(
        self,
        chat: Chat,
        tools: Sequence[Any] | None,
        *,
        asks: bool,
        time_ns: int | None = None,
        date: str | None = None,
    ) -> str:
        """Text of a conversation; with `asks`, up to where the next answer begins.

        Args:
            chat: messages, oldest first.
            tools: function definitions in their wrapping; None without any.
            asks: add the generation prompt.
            time_ns: when it was sampled: what a template that writes the date is told, so that
                it renders the same on every day.
            date: what to write for the date instead.

        Raises:
            TemplateRefusalError: the template raises.
        """
        options: dict[str, Any] = {}
        if date is not None or (time_ns is not None and self.writes_date):
            moment = datetime.fromtimestamp((time_ns or 0) / 1e9, tz=UTC)
            options["chat_template"] = _CLOCK + self._tokenizer.get_chat_template(tools=tools)
            options["zq_date"] = {
                f"%{code}": moment.strftime(f"%{code}") if date is None else date
                for code in _DATE_CODES
            }
        try:
            return self._tokenizer.apply_chat_template(
                [self._adapt(message) for message in chat],
                tools=tools or None,
                tokenize=False,
                add_generation_prompt=asks,
                **options,
            )
        except (
            jinja2.TemplateError,
            *(TypeError, ValueError, AttributeError, LookupError, ArithmeticError),
        ) as error:
            raise TemplateRefusalError(" ".join(str(error).split())) from error

    def cut_answer(self, tail: str) -> tuple[str, bool]:
        """What an answer adds to its prompt -> the part up to its end token, and whether it has one.

        What follows the end token is the template's, not the model's.
        """
        found = [tail.rfind(token) + len(token) for token in self._end_tokens if token in tail]
        if found and not tail[max(found) :].strip():
            return tail[: max(found)], True
        return tail, False

    def _adapt(self, message: dict[str, Any]) -> dict[str, Any]:
        """One message in the form in which this template renders most of it."""
        message = dict(message)
        if message["role"] == "developer" and not self._knows_developer:
            message["role"] = "system"
        if "tool_call_id" in message:
            message["tool_call_id"] = self._adapt_id(message["tool_call_id"])
        calls = message.get("tool_calls")
        if not calls:
            message["content"] = message.get("content") or ""
            return message
        message["tool_calls"] = [self._adapt_call(call) for call in calls]
        if not message.get("content"):
            message["content"] = self._empty
            if self._empty is _ABSENT:
                del message["content"]
        return message

    def _adapt_call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        if self._parses_arguments:
            with suppress(
                ValueError, RecursionError
            ):  # else it stays the broken text that the model wrote
                function["arguments"] = json.loads(function["arguments"])
        return {**call, "id": self._adapt_id(call["id"]), "function": function}

    def _adapt_id(self, call_id: str) -> str:
        if not self._shortens_ids or (len(call_id) == 9 and call_id.isalnum()):
            return call_id
        return blake2b(call_id.encode(), digest_size=5).hexdigest()[:9]

    def _choose_forms(self) -> None:
        """How calls must be given so that name and arguments come out; as they were if nothing helps.

        Arguments as text first: then the model reads what it wrote, word for word.
        """
        function = {"name": "zqname", "arguments": _ARGUMENTS}
        call = {"id": _LONG_ID, "type": "function", "function": function}
        asked = {"role": "assistant", "content": None, "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": _LONG_ID, "content": "zqresult"}
        forms = [(*form, shortens) for shortens in (False, True) for form in _CALL_FORMS]
        chosen = self._parses_arguments, self._empty, self._shortens_ids
        found_clean = False
        for form in reversed(forms):  # the first that loses nothing, or else that writes "None"
            self._parses_arguments, self._empty, self._shortens_ids = form
            text = self._try([_USER, asked, result])
            expected = ("zqkey", "zqvalue") if self._parses_arguments else (_ARGUMENTS,)
            if all(word in text for word in ("zqname", *expected)):
                is_clean = "None" not in text
                if is_clean or not found_clean:
                    chosen, found_clean = form, found_clean or is_clean
        self._parses_arguments, self._empty, self._shortens_ids = chosen

    def _find_default_system(self) -> str | None:
        """What stands before a lone user's message, in the place of a system message."""
        told = self._try([_text("system", "zqsystem"), _USER])
        before, _, rest = told.partition("zqsystem")
        between, _, _ = rest.partition("zquser")
        alone = self._try([_USER]).partition("zquser")[0]
        if not before.strip() or not between or not alone.startswith(before):
            return None
        added = alone[len(before) :]
        return added.removesuffix(between) or None if added.endswith(between) else None

    def _find_added(self) -> str:
        asked, answered = self._try([_USER], asks=True), self._try([_USER, _ANSWER])
        if not asked or not answered.startswith(asked):
            return ""
        return answered[len(asked) :].partition("zqanswer")[0].strip()

    def _try(self, chat: Chat, *, asks: bool = False, date: str | None = None) -> str:
        try:
            return self.render(chat, None, asks=asks, date=date)
        except TemplateRefusalError:
            return ""

    def _find_losses(self, shape: Shape, has_tools: bool) -> frozenset[str]:  # noqa: FBT001 (a key)
        """Shape of a prompt's messages -> what of it the rendered prompt lacks or garbles."""
        chat = _fill(shape)
        tools = [_make_tool(number) for number in (0, 1)] if has_tools else None
        try:
            text = self.render(chat, tools, asks=True)
            filled = self.render(_fill(shape, always_text=True), tools, asks=True)
        except TemplateRefusalError:  # the real one was rendered: it depends on what is said
            return frozenset()
        losses = set()
        if any(word not in text for tool in tools or () for word in _words_of_tool(tool)):
            losses.add("template_ignores_tools")
        for message in chat:
            if message["content"] and message["content"] not in text:
                is_result = message["role"] == "tool"
                losses.add("template_drops_results" if is_result else "template_drops_messages")
            if message.get("reasoning_content", "") not in text:
                losses.add("template_strips_reasoning")
            for call in message.get("tool_calls", ()):
                function = call["function"]
                if function["name"] not in text or f"{function['name']}value" not in text:
                    losses.add("template_drops_earlier_calls")
        if text.count("None") > filled.count("None"):
            losses.add("template_writes_none")
        return frozenset(losses)


def describe_shape(chat: Chat) -> Shape:
    """What of a conversation decides which parts a template keeps."""
    return tuple(
        (
            message["role"],
            bool(message.get("content")),
            bool(message.get("reasoning_content")),
            len(message.get("tool_calls") or ()),
        )
        for message in chat
    )


def _text(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


_USER: Final = _text("user", "zquser")
_ANSWER: Final = _text("assistant", "zqanswer")


def _fill(shape: Shape, *, always_text: bool = False) -> Chat:
    """Sentinel messages of a shape; results answer calls in their order."""
    chat: Chat = []
    pending: list[str] = []
    for place, (role, has_text, has_reasoning, num_calls) in enumerate(shape):
        message = _text(role, f"zq{place}text" if has_text or always_text else "")
        if has_reasoning:
            message["reasoning_content"] = f"zq{place}why"
        if num_calls:
            names = [f"zq{place}call{number}x" for number in range(num_calls)]
            pending = [f"zq{place:04}{number:03}" for number in range(num_calls)]
            message["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": name, "arguments": json.dumps({"key": f"{name}value"})},
                }
                for call_id, name in zip(pending, names, strict=True)
            ]
        if role == "tool":
            message["tool_call_id"] = pending.pop(0) if pending else "zq0000000"
        chat.append(message)
    return chat


def _make_tool(number: int) -> dict[str, Any]:
    schema = {"type": "object", "properties": {f"zqfield{number}x": {"type": "string"}}}
    function = {"name": f"zqtool{number}x", "description": f"zqabout{number}x"}
    return {"type": "function", "function": function | {"parameters": schema}}


def _words_of_tool(tool: dict[str, Any]) -> Sequence[str]:
    function = tool["function"]
    return function["name"], function["description"], *function["parameters"]["properties"]
