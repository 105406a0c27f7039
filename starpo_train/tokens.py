"""Trajectory -> TokenSequence rows.

A turn whose prompt extends the previous prompt + response token by token continues that row; any
other turn (history compacted or edited, reasoning stripped, a sub-agent) begins a new row, in
which earlier answers are context only. So every sampled token is trained exactly once, under
exactly the prefix it was sampled from.

Array suffix: T tokens of one row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from starpo_train.errors import DataError

if TYPE_CHECKING:  # tokens and what follows need no data library
    from starpo_train.dataset import Trajectory, Turn


FindEstimate = Callable[[str, int, np.ndarray, np.ndarray], np.ndarray | None]
"""Trajectory, turn, ids of its prompt and answer -> log-probabilities of the answer, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTokens:
    """One turn as ids, recorded or rendered."""

    turn: int
    prompt_ids_T: np.ndarray
    response_ids_T: np.ndarray
    logprobs_T: np.ndarray | None
    """Of the response; None unless recorded exactly, or estimated."""
    recorded: bool
    """False: rendered by a chat template from the messages."""
    trained: bool
    """False: context only, such as a turn of another model."""
    estimated: bool = False
    """The log-probabilities are those of a fitted behaviour model."""
    temperature: float = 1.0
    """At which the log-probabilities are the policy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """One row of tokens that the model sees in one go."""

    trajectory: int
    """Position of its trajectory in the list given."""
    input_ids_T: np.ndarray
    """int64."""
    action_mask_T: np.ndarray
    """bool: sampled by the policy, and trained in this row."""
    turn_T: np.ndarray
    """int64: turn that sampled the token; -1 for context."""
    turn_end_mask_T: np.ndarray
    """bool: last sampled token of a trained turn."""
    turn_start_mask_T: np.ndarray
    """bool: last prompt token before a trained turn, the state that the turn acts on."""
    logprobs_T: np.ndarray | None
    """float32 behaviour log-probabilities, 0 outside the action mask; None when not exact."""
    weight: float = 1.0
    """Multiplies the loss of the row's tokens."""
    recorded: bool
    """True: exact ids; False: retokenized."""
    estimated: bool = False
    """The log-probabilities are those of a fitted behaviour model."""
    temperatures_T: np.ndarray | None = None
    """float32, by which the logits of trained tokens are divided; None: all are 1."""

    @property
    def num_tokens(self) -> int:
        """Length of the row."""
        return len(self.input_ids_T)

    @property
    def num_actions(self) -> int:
        """Trained tokens of the row."""
        return int(self.action_mask_T.sum())

    def recorded_logprobs(self) -> np.ndarray:
        """float32 [A]: the behaviour policy's at the trained tokens.

        Raises:
            DataError: it has none.
        """
        if self.logprobs_T is None:
            raise DataError("a row without log-probabilities reached a ratio.")
        return self.logprobs_T[self.action_mask_T]


def tokenize_trajectory(
    trajectory: "Trajectory",
    *,
    position: int,
    rendered: Sequence[TurnTokens | None] | None = None,
    models: Sequence[str] = (),
    at_temperature: bool = False,
    estimate: FindEstimate | None = None,
) -> list[TokenSequence]:
    """One trajectory -> its rows.

    Turns without recorded ids are taken from `rendered`; those that are None there are left out.
    With `models`, turns sampled by any other model become context. With `at_temperature`, the policy
    is scored at the temperature at which each turn was sampled, otherwise at 1. `estimate` gives
    log-probabilities of turns that have none.
    """
    turns: list[TurnTokens] = []
    for index, turn in enumerate(trajectory.turns):
        temperature = turn.temperature if at_temperature else None
        trained = not models or turn.model in models
        tokens = _recorded_turn(turn, trained=trained, temperature=temperature or 1.0)
        if tokens is None and rendered is not None:
            tokens = rendered[index]
        if tokens is not None:
            if estimate is not None and tokens.logprobs_T is None and trained:
                tokens = _add_estimate(tokens, trajectory.trajectory_id, estimate)
            turns.append(tokens)
    return build_rows(turns, trajectory=position)


def build_rows(turns: Sequence[TurnTokens], *, trajectory: int) -> list[TokenSequence]:
    """Turns in order -> rows; see the module's docstring for when a row ends.

    A linear trajectory of two turns (p prompt, A/B sampled; `^` trained, `|` turn end)::

        turn 0: pp AA          turn 1: pp AA p BB
        row 0:  p p A A p B B
                    ^ |   ^ |
    """
    rows: list[_RowBuilder] = []
    for tokens in turns:
        fitting = [row for row in rows if row.is_extended_by(tokens)]
        if fitting:
            row = max(fitting, key=lambda candidate: candidate.length)
        else:
            row = _RowBuilder()
            rows.append(row)
        row.append(tokens)
    built = (row.build(trajectory) for row in rows)
    return [row for row in built if row.action_mask_T.any()]


class _RowBuilder:
    def __init__(self) -> None:
        self.length = 0
        self._ids: list[np.ndarray] = []
        self._turns: list[tuple[int, TurnTokens]] = []  # (where its response starts, turn)

    def is_extended_by(self, tokens: TurnTokens) -> bool:
        if len(tokens.prompt_ids_T) < self.length:
            return False
        whole = np.concatenate(self._ids)
        self._ids = [whole]
        return np.array_equal(tokens.prompt_ids_T[: self.length], whole)

    def append(self, tokens: TurnTokens) -> None:
        self._ids += [tokens.prompt_ids_T[self.length :], tokens.response_ids_T]
        start = len(tokens.prompt_ids_T)
        self._turns.append((start, tokens))
        self.length = start + len(tokens.response_ids_T)

    def build(self, trajectory: int) -> TokenSequence:
        action_mask_T = np.zeros(self.length, dtype=bool)
        turn_T = np.full(self.length, -1, dtype=np.int64)
        turn_end_mask_T = np.zeros(self.length, dtype=bool)
        turn_start_mask_T = np.zeros(self.length, dtype=bool)
        logprobs_T = np.zeros(self.length, dtype=np.float32)
        temperatures_T = np.ones(self.length, dtype=np.float32)
        trained = [(start, turn) for start, turn in self._turns if turn.trained]
        for start, turn in trained:
            # the very first token of a row has no prefix to be predicted from
            first, end = max(start, 1), start + len(turn.response_ids_T)
            action_mask_T[first:end] = True
            turn_T[first:end] = turn.turn
            turn_end_mask_T[end - 1] = action_mask_T[end - 1]
            turn_start_mask_T[first - 1] = action_mask_T[end - 1]
            if turn.logprobs_T is not None:
                logprobs_T[first:end] = turn.logprobs_T[first - start :]
            temperatures_T[first:end] = turn.temperature
        exact = all(turn.logprobs_T is not None for _, turn in trained)
        return TokenSequence(
            trajectory=trajectory,
            input_ids_T=np.concatenate(self._ids).astype(np.int64),
            action_mask_T=action_mask_T,
            turn_T=turn_T,
            turn_end_mask_T=turn_end_mask_T,
            turn_start_mask_T=turn_start_mask_T,
            logprobs_T=logprobs_T if exact else None,
            recorded=all(turn.recorded for _, turn in trained),
            estimated=exact and any(turn.estimated for _, turn in trained),
            temperatures_T=temperatures_T if (temperatures_T != 1).any() else None,
        )


def _add_estimate(tokens: TurnTokens, name: str, estimate: FindEstimate) -> TurnTokens:
    logprobs_T = estimate(name, tokens.turn, tokens.prompt_ids_T, tokens.response_ids_T)
    return replace(tokens, logprobs_T=logprobs_T, estimated=logprobs_T is not None)


def _recorded_turn(turn: "Turn", *, trained: bool, temperature: float) -> TurnTokens | None:
    if turn.prompt_ids_T is None or turn.response_ids_T is None:
        return None
    return TurnTokens(
        turn=turn.turn,
        prompt_ids_T=turn.prompt_ids_T,
        response_ids_T=turn.response_ids_T,
        logprobs_T=turn.logprobs_T if turn.logprobs_exact else None,
        recorded=True,
        trained=trained,
        temperature=temperature,
    )
