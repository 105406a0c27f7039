"""Prompts + a checkpoint -> its actions, from the built-in engine; no tool is executed."""

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from starpo_train.replay.actions import Action, read_action
from starpo_train.replay.questions import Question
from starpo_train.serve.engine import Engine
from starpo_train.serve.generation import Generation, GenerationRequest

_MAX_BATCH: Final = 32
_AT_ONCE: Final = 512
"""Answers that are held at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How the checkpoint is asked."""

    temperature: float
    seed: int
    max_tokens: int


def ask_checkpoint(
    model: Any,
    tokenizer: Any,
    questions: Sequence[tuple[str, Question]],
    how: Asking,
    *,
    max_context: int,
) -> list[Action]:
    """(trajectory id, question) -> the action in its place, in this order."""
    engine = Engine(model, tokenizer, max_batch=_MAX_BATCH, max_context=max_context)
    try:
        actions = []
        for start in range(0, len(questions), _AT_ONCE):
            actions += _ask(engine, questions[start : start + _AT_ONCE], how)
    finally:
        engine.close()
    return actions


def _ask(engine: Engine, questions: Sequence[tuple[str, Question]], how: Asking) -> list[Action]:
    done: queue.SimpleQueue[Generation] = queue.SimpleQueue()
    generations = [
        engine.submit(
            GenerationRequest(
                prompt_ids=list(question.prompt_ids),
                max_tokens=min(how.max_tokens, engine.max_context - len(question.prompt_ids)),
                temperature=how.temperature,
                seed=_seed_turn(how.seed, name, question.turn),
            ),
            on_done=done.put,
        )
        for name, question in questions
    ]
    for _ in generations:
        finished = done.get()
        if finished.error is not None:
            raise finished.error
    return [
        read_action(each.text, thinking=question.thinking, is_cut=each.finish_reason == "length")
        for each, (_, question) in zip(generations, questions, strict=True)
    ]


def _seed_turn(seed: int, trajectory_id: str, turn: int) -> int:
    """The same for a turn, whatever else is asked."""
    text = f"{seed} {turn} {trajectory_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=4).digest()) >> 1
