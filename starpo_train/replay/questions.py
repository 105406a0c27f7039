"""Logged successes -> the prompt of every recorded turn, or why the checkpoint is not asked there.

A recorded answer is read from its tokens as the checkpoint's will be. Where that does not give the
recorded calls and words back, the form in which this model calls tools is one that the engine does
not read (or the tokens are another model's), and nothing of that run could be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from starpo_train.dataset import MessageNode, Trajectory, Turn
from starpo_train.render import RenderedTrajectory, TurnRenderer
from starpo_train.replay.actions import Action, is_same_action, read_action
from starpo_train.serve.toolparse import THINK_OPEN

_CUT: Final = ("length", "max_tokens", "MAX_TOKENS", "model_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTurn:
    """What a dataset says of one turn beside its tokens."""

    action: Action
    finish_reason: str | None
    outcome: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One recorded turn to ask at."""

    turn: int
    recorded: Action
    tool_definitions: str | None
    prompt_ids: tuple[int, ...] = ()
    thinking: bool = False
    """The prompt ends inside an open `<think>`."""
    num_answer_tokens: int = 0
    """Of the recorded answer."""
    reason: str | None = None
    """Why the checkpoint is not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionWriter:
    """Writes the questions of one checkpoint."""

    tokenizer: Any
    num_vocabulary: int
    max_context: int
    models: Sequence[str] = ()
    renderer: TurnRenderer | None = None
    """None: no turn lacks ids."""

    def write_questions(
        self,
        trajectory: Trajectory,
        recorded: Mapping[int, RecordedTurn],
        graph: dict[str, MessageNode],
    ) -> list[Question]:
        """A question for each turn, in order."""
        rendered = None
        if self.renderer is not None and trajectory.lacks_ids(self.models):
            rendered = self.renderer.render_trajectory(trajectory, graph, models=self.models)
        questions = [
            self._write_question(turn, recorded[turn.turn], rendered, place)
            for place, turn in enumerate(trajectory.turns)
        ]
        if any(each.reason == "answer_not_read_back" for each in questions):
            questions = [
                replace(each, reason=each.reason or "answer_not_read_back") for each in questions
            ]
        return questions

    def _write_question(
        self, turn: Turn, recorded: RecordedTurn, rendered: RenderedTrajectory | None, place: int
    ) -> Question:
        question = Question(
            turn=turn.turn, recorded=recorded.action, tool_definitions=turn.tool_definitions
        )
        reason = self._find_reason(turn, recorded)
        if reason is None and rendered is not None:
            reason = rendered.find_reason(keep_lossy=False)
        if reason is not None:
            return replace(question, reason=reason)
        tokens = turn if rendered is None else rendered.turns[place]
        if tokens is None or tokens.prompt_ids_T is None or tokens.response_ids_T is None:
            return replace(question, reason="no_tokens")
        return self._check_tokens(question, tokens.prompt_ids_T, tokens.response_ids_T)

    def _find_reason(self, turn: Turn, recorded: RecordedTurn) -> str | None:
        """Why the recording itself has nothing to compare with."""
        if self.models and turn.model not in self.models:
            return "other_model"
        if recorded.outcome not in {None, "ok"}:
            return f"recorded_{recorded.outcome}"
        if recorded.finish_reason in _CUT:
            return "recorded_cut"
        return None if recorded.action.problem is None else "no_action_recorded"

    def _check_tokens(
        self, question: Question, prompt_ids_T: np.ndarray, response_ids_T: np.ndarray
    ) -> Question:
        if len(prompt_ids_T) >= self.max_context:
            return replace(question, reason="prompt_too_long")
        ids_T = np.concatenate([prompt_ids_T, response_ids_T])
        if ids_T.min() < 0 or ids_T.max() >= self.num_vocabulary:
            return replace(question, reason="ids_outside_vocabulary")
        prompt = self.tokenizer.decode(prompt_ids_T.tolist())
        thinking = prompt.rstrip().endswith(THINK_OPEN)
        answer = self.tokenizer.decode(response_ids_T.tolist(), skip_special_tokens=True)
        if not is_same_action(read_action(answer, thinking=thinking), question.recorded):
            return replace(question, reason="answer_not_read_back")
        return replace(
            question,
            prompt_ids=tuple(prompt_ids_T.tolist()),
            thinking=thinking,
            num_answer_tokens=len(response_ids_T),
        )
