"""Episode + agent -> a recorded run, its reward.

The loop an ordinary agent has: ask, act, read what it led to, until it ends.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import starpo_trace
from starpo_train.environments.endpoint import Sampling
from starpo_train.environments.protocol import Environment, Episode, Feedback, Message, Task
from starpo_train.errors import EnvironmentFailedError

MAX_TURNS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    reward: float
    end: Literal["terminated", "truncated"]
    reason: str | None = None


Ask = Callable[[list[Message], list[dict[str, Any]], int], Message | None]
"""(messages, tools, turn) -> the agent's next message; None: the messages are too long for it."""


def play_episode(
    ask: Ask, environment: Environment, task: Task, *, seed: int, max_turns: int = MAX_TURNS
) -> Outcome:
    """Play one task to its end; what happens is recorded in the current trajectory.

    Raises:
        EnvironmentFailedError: the environment raised, or broke the protocol. The run has no reward.
        openai.OpenAIError: the endpoint failed, other than by a prompt that is too long.
    """
    watched = _Watched(environment.name, task.id)
    with watched.during("start"):
        episode = environment.start(task, seed)
    try:
        return _play(ask, episode, watched, max_turns)
    finally:
        with watched.during("close"):
            episode.close()


def _play(ask: Ask, episode: Episode, watched: "_Watched", limit: int) -> Outcome:
    with watched.during("messages and tools"):
        messages: list[Message] = [dict(message) for message in episode.messages]
        tools = list(episode.tools)
        opening = getattr(episode, "state", None)
    if opening is not None:
        starpo_trace.state(opening)
    for turn in range(limit):
        message = ask(messages, tools, turn)
        if message is None:
            return _cut(episode, watched, messages, reason="context_length")
        messages.append(message)
        with watched.during("act"):
            feedback = episode.act(message)
            check_feedback(message, feedback)
        messages += feedback.messages
        _record(feedback)
        if feedback.end is not None and feedback.reward is not None:
            starpo_trace.observe(messages)  # the last result, which no later call would show
            return Outcome(reward=float(feedback.reward), end=feedback.end, reason=feedback.reason)
    return _cut(episode, watched, messages, reason="max_turns")


def _record(feedback: Feedback) -> None:
    run = starpo_trace.current_trajectory()
    is_by_model = run is not None and run.last_llm_step is not None  # else there is no turn
    if feedback.process_reward is not None and is_by_model:
        starpo_trace.reward(feedback.process_reward, name="process", scope="turn")
    if feedback.state is not None:
        starpo_trace.state(feedback.state)


def ask_model(client: Any, model: str, sampling: Sampling, *, seed: int) -> Ask:
    """The model behind an endpoint; each of its answers has a seed of its own."""

    def ask(messages: list[Message], tools: list[dict[str, Any]], turn: int) -> Message | None:
        import openai

        request = sampling.build_request(seed=seed + turn)
        if tools:
            request["tools"] = tools
        try:
            answer = client.chat.completions.create(model=model, messages=messages, **request)
        except openai.BadRequestError as error:
            if is_context_error(error):
                return None
            raise
        message = answer.choices[0].message.model_dump(exclude_none=True)
        if not message.get("tool_calls"):
            message.setdefault("content", "")  # an empty answer; APIs want the key
        return message

    return ask


def follow(answers: Sequence[Message]) -> Ask:
    """Somebody who gives these answers and then none; without any, the null agent."""

    def ask(messages: list[Message], tools: list[dict[str, Any]], turn: int) -> Message:
        _ = messages, tools
        return answers[turn] if turn < len(answers) else {"role": "assistant", "content": ""}

    return ask


def is_context_error(error: Any) -> bool:
    """Whether an endpoint refused a prompt for its length, in OpenAI's, vLLM's or our words."""
    said = str(getattr(error, "message", error)).lower()
    return getattr(error, "code", None) == "context_length_exceeded" or any(
        words in said for words in ("maximum context length", "context length", "max_model_len")
    )


def check_feedback(message: Message, feedback: Feedback) -> None:
    """Refuse feedback that no run could go on with, or end with.

    Raises:
        ValueError: what is missing.
    """
    if feedback.end not in (None, "terminated", "truncated"):
        raise ValueError(f"feedback with end={feedback.end!r}: must be terminated or truncated")
    for name, value in (("reward", feedback.reward), ("process_reward", feedback.process_reward)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"feedback with {name}={value}: must be a finite number")
    if feedback.end is not None and feedback.reward is None:
        raise ValueError(f"feedback with end={feedback.end!r} needs a reward")
    if feedback.end is None and feedback.reward is not None:
        raise ValueError(
            f"feedback with reward={feedback.reward} needs an end; what the message was worth by "
            "itself is its process_reward"
        )
    if feedback.end is None:
        answered = {each.get("tool_call_id") for each in feedback.messages}
        for call in message.get("tool_calls") or ():
            if call["id"] not in answered:
                raise ValueError(f"the call {call['id']!r} got no message of the role tool")
        if not feedback.messages:
            raise ValueError("feedback without messages and without an end: nothing to go on with")


def _cut(episode: Episode, watched: "_Watched", messages: list[Message], *, reason: str) -> Outcome:
    with watched.during("cut"):
        reward = float(episode.cut())
        if not math.isfinite(reward):
            raise ValueError(f"cut() gave {reward}: must be a finite number")
    starpo_trace.observe(messages)
    return Outcome(reward=reward, end="truncated", reason=reason)


class _Watched:
    """Tells what an environment raises from everything else."""

    def __init__(self, name: str, task_id: str) -> None:
        self._name, self._task_id = name, task_id
        self._doing = ""

    def during(self, doing: str) -> "_Watched":
        self._doing = doing
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, Exception):
            raise EnvironmentFailedError(
                f"environment {self._name!r} failed in {self._doing} of task {self._task_id!r}: "
                f"{error!r}"
            ) from error
