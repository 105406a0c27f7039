"""A model's message -> one call of a tool after the other, or words to a user.

An episode that derives from `CallEpisode` writes `call` and `say` and never sees what the model got
wrong about its tools: no JSON, no such tool, arguments that miss the schema. The model is told.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator

import starpo_trace
from starpo_train.environments.protocol import Feedback, Message

NOT_CALLED = "Error: the run had ended before this call."


class ToolError(Exception):
    """What a tool refuses; its text is what the model reads."""


class CallEpisode(ABC):
    """Base of episodes whose model calls tools. Each call is recorded as a step of its own."""

    messages: Sequence[Message] = ()
    """What the model reads first."""
    tools: Sequence[dict[str, Any]] = ()
    """Function tools with JSON schemas."""

    @abstractmethod
    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, Feedback]:
        """One call that meets the tool's schema -> its result as text, and what it led to.

        The feedback's `messages` come after the results of all calls; mostly there are none.

        Raises:
            ToolError: the tool refuses; the model reads why and the run goes on.
        """

    def say(self, text: str) -> Feedback:
        """An answer without a call -> what it led to; by default the end, worth `cut()`."""
        return Feedback(end="terminated", reward=self.cut(), reason="answered without a tool call")

    def cut(self) -> float:
        """Reward of a run that is stopped from outside."""
        return 0.0

    def close(self) -> None:  # noqa: B027 (most have nothing)
        """Nothing to give back."""

    def act(self, message: Message) -> Feedback:
        """Every call in its order, until one ends the run; else what was said."""
        calls = message.get("tool_calls") or ()
        if not calls:
            return self.say(message.get("content") or "")
        results: list[Message] = []
        found: list[Feedback] = []
        for call in calls:
            text = NOT_CALLED
            if not (found and found[-1].end):
                text, feedback = self._run(call)
                found.append(feedback)
            sendable = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is not
            results.append({"role": "tool", "tool_call_id": call["id"], "content": sendable})
        return _join(results, found)

    def _run(self, call: Mapping[str, Any]) -> tuple[str, Feedback]:
        name, text = call["function"]["name"], call["function"]["arguments"]
        with starpo_trace.step("tool", name, call_id=call["id"], arguments=text) as step:
            arguments, complaint = read_arguments(self.tools, name, text)
            result, feedback = f"Error: {complaint}", Feedback()
            if complaint is None:
                try:
                    result, feedback = self.call(name, arguments)
                except ToolError as error:
                    result = f"Error: {error}"
            step.result(result)
        return result, feedback


def read_arguments(
    tools: Sequence[dict[str, Any]], name: str, text: str
) -> tuple[dict[str, Any], str | None]:
    """What a model wrote as arguments -> the arguments, and what is wrong with them or None.

    >>> read_arguments([], "fly", "{}")
    ({}, "there is no tool 'fly'; there is none at all")
    """
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    if name not in functions:
        known = f"use one of {', '.join(functions)}" if functions else "there is none at all"
        return {}, f"there is no tool {name!r}; {known}"
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, too
        return {}, f"the arguments of {name} are not JSON ({error})"
    schema = functions[name].get("parameters") or {"type": "object"}
    fault = next(iter(Draft202012Validator(schema).iter_errors(arguments)), None)
    if fault is not None:
        where = ".".join(map(str, fault.absolute_path))
        return {}, f"the arguments of {name} do not fit: {where and where + ': '}{fault.message}"
    if not isinstance(arguments, dict):
        return {}, f"the arguments of {name} are no JSON object"
    return arguments, None


def _join(results: list[Message], found: list[Feedback]) -> Feedback:
    """Feedback of one message's calls -> that of the message; process rewards add up."""
    last = found[-1]
    rewards = [each.process_reward for each in found if each.process_reward is not None]
    states = [each.state for each in found if each.state is not None]
    return Feedback(
        messages=[*results, *(message for each in found for message in each.messages)],
        process_reward=sum(rewards) if rewards else None,
        state=states[-1] if states else None,
        end=last.end,
        reward=last.reward,
        reason=last.reason,
    )
