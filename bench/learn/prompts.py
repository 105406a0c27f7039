"""Messages <-> token ids, as the server and its client would make them of each other."""

import re
from typing import Any

from starpo_train.environments import Message
from starpo_train.serve.template import ChatRenderer
from starpo_train.serve.toolparse import AnswerParser, join_pieces


class Prompts:
    """Messages <-> token ids, each piece of text encoded once.

    What lies between two added tokens is encoded by itself anyway, so it can be remembered.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._renderer = ChatRenderer(tokenizer, name=tokenizer.name_or_path)
        added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, added))})")
        self._ids: dict[str, list[int]] = {}
        self._texts: dict[tuple[int, ...], str] = {}

    def build(self, messages: list[Message], tools: Any) -> list[int]:
        """What the server would make of this request."""
        text = self._renderer.render_text(messages, list(tools))
        ids: list[int] = []
        for piece in self._split.split(text):
            if piece not in self._ids:
                self._ids[piece] = self._tokenizer.encode(piece, add_special_tokens=False)
            ids += self._ids[piece]
        return ids

    def read(self, ids: list[int]) -> str:
        """An answer's text, without the token that ends it."""
        key = tuple(ids)
        if key not in self._texts:
            ends = ids[-1:] == [self._tokenizer.eos_token_id]
            self._texts[key] = self._tokenizer.decode(
                ids[: len(ids) - ends], skip_special_tokens=True
            )
        return self._texts[key]

    def parse(self, text: str, *, has_tools: bool) -> Message:
        """The message that a client of the server reads."""
        parser = AnswerParser(tools=has_tools)
        answer = join_pieces(parser.feed(text) + parser.finish())
        message: Message = {"role": "assistant"}
        if answer.content is not None:
            message["content"] = answer.content
        if answer.reasoning is not None:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{number}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for number, call in enumerate(answer.tool_calls)
            ]
        else:
            message.setdefault("content", "")
        return message
