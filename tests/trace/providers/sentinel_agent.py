"""An agent that lets a sentinel into everything that Starpo can see."""

from contextlib import suppress

from opentelemetry import baggage
from opentelemetry import context as otel_context
from sentinel_calls import (
    ask_anthropic,
    ask_chat,
    ask_chat_async,
    ask_embeddings,
    ask_gemini,
    ask_responses,
    fail_calls,
    stream_chat,
)
from sentinels import Sentinels

import starpo_trace
from starpo_trace import semconv


class Unprintable:
    """An object whose `repr` fails, with a secret in the reason."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        raise ValueError(self.text)


def take_steps(s: Sentinels) -> None:
    """Steps, states, observations and rewards."""
    with starpo_trace.step(
        "tool",
        s.text("step name"),
        call_id=s.text("step call id"),
        arguments=s.text("step argument"),
    ) as step:
        step.result(s.text("step result"))
    given = {s.text("step key"): [s.text("step value")]}
    with starpo_trace.step("retriever", "r", arguments=given) as step:
        step.result({"found": Printable(s.text("step repr"))})
    with suppress(RuntimeError), starpo_trace.step("tool", "t"):
        raise RuntimeError(s.text("tool exception"))
    base = {"pad": "x" * 500, s.text("state key"): {"note": s.text("state value")}}
    starpo_trace.state(base, name=s.text("state name"))
    starpo_trace.state({**base, "new": s.text("state diff")}, name=s.text("state name"))
    starpo_trace.observe([{"role": "user", "content": s.text("observation")}])
    starpo_trace.reward(
        0.5,
        name=s.text("reward name"),
        source="judge",
        label=s.text("reward label"),
        explanation=s.text("reward explanation"),
        reward_id=s.text("reward id"),
        judge_id=s.text("judge id"),
        judge_prompt_hash=s.text("judge prompt hash"),
        verifier_digest=s.text("verifier digest"),
    )
    starpo_trace.reward({s.text("reward vector"): 1.0}, scope="step")


class Printable:
    """An object that JSON cannot hold."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Printable({self.text!r})"


def misuse(s: Sentinels) -> None:
    """Mistakes that are logged, with what was given in their reasons."""
    starpo_trace.reward(s.text("log: reward"))  # pyright: ignore[reportArgumentType]
    starpo_trace.state(Unprintable(s.text("log: state")))
    with starpo_trace.step(s.text("log: kind"), "x"):  # pyright: ignore[reportArgumentType]
        pass
    with starpo_trace.trajectory(resume=s.text("log: resume")):
        pass


def work(s: Sentinels) -> None:
    """Everything, in trajectories that are named by secrets too."""
    identity = {
        name: s.text(f"trajectory {name}")
        for name in (
            *("name", "task_id", "policy_id", "environment_name", "environment_version"),
            *("cohort", "conversation_id", "trajectory_id"),
        )
    }
    with starpo_trace.trajectory(**identity) as run:  # pyright: ignore[reportArgumentType]
        ask_chat(s)
        stream_chat(s)
        ask_chat_async(s)
        ask_responses(s)
        ask_embeddings(s)
        fail_calls(s)
        ask_anthropic(s)
        ask_gemini(s)
        take_steps(s)
        misuse(s)
        run.end("truncated", reason=s.text("end reason"))
        token = run.checkpoint()
    ask_chat(s)  # in no trajectory
    with suppress(LookupError), starpo_trace.trajectory(resume=token):
        raise LookupError(s.text("exception that leaves the run"))
    starpo_trace.reward(
        1.0,
        trajectory_id=s.text("trajectory trajectory_id"),
        task_id=s.text("trajectory task_id"),
        explanation=s.text("late explanation"),
    )
    context = otel_context.Context()
    for key in (semconv.TRAJECTORY_ID, semconv.TASK_ID, semconv.POLICY_ID):
        context = baggage.set_baggage(key, s.text(f"baggage {key}"), context)
    attached = otel_context.attach(context)
    try:
        with starpo_trace.step("tool", "called from elsewhere"):
            pass
    finally:
        otel_context.detach(attached)
