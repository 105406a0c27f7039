"""The conversation so far -> what the user says next."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opentelemetry.instrumentation.utils import suppress_instrumentation

from starpo_train.environments.protocol import Message

User = Callable[[Sequence[Message]], str | None]
"""Conversation, as the user sees it (roles user and assistant) -> next words; None: has left."""

STOP_WORD = "###STOP###"

_ROLE = (
    "You are a user who talks with an assistant. Your situation and what you want:\n\n{instruction}"
    "\n\nWrite one message at a time, in your own words. Tell what you are asked for and no more; "
    "make nothing up. Once you have what you wanted, or it is refused for good, write {stop} alone."
)


def follow_script(turns: Sequence[str]) -> User:
    """A user who says the same, whatever the answers are, and then leaves."""

    def speak(conversation: Sequence[Message]) -> str | None:
        said = sum(message["role"] == "user" for message in conversation)
        return turns[said] if said < len(turns) else None

    return speak


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedUser:
    """A model that plays users, at an endpoint of its own. Its calls are no part of the run."""

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    """Variable that holds the key; APIs without one need none."""
    temperature: float = 0.0
    max_tokens: int = 256
    max_retries: int = 4
    prompt: str = _ROLE
    """With `{instruction}` and `{stop}`."""

    def follow(self, instruction: str, *, seed: int) -> User:
        """The user of one run."""
        import openai

        client = openai.OpenAI(
            base_url=self.base_url,
            api_key=os.environ.get(self.api_key_env) or "none",
            max_retries=self.max_retries,
        )
        role = self.prompt.format(instruction=instruction, stop=STOP_WORD)
        swapped = {"user": "assistant", "assistant": "user"}

        def speak(conversation: Sequence[Message]) -> str | None:
            opening = [{"role": "user", "content": "Hello, how can I help you?"}]
            messages = [
                {"role": "system", "content": role},
                *opening,
                *({"role": swapped[m["role"]], "content": m["content"]} for m in conversation),
            ]
            with suppress_instrumentation():
                answer = client.chat.completions.create(
                    model=self.model,
                    messages=messages,
                    temperature=self.temperature,
                    max_tokens=self.max_tokens,
                    seed=(seed + len(conversation)) % 2**31,
                )
            text = answer.choices[0].message.content or ""
            return None if STOP_WORD in text else text

        return speak
