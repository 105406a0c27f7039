"""Runs that advance in lockstep: all prompts, then all answers, then all environments.

A run's keys and values stay in one slot from its first prompt to its end; random numbers, sampling
and parsing are the server's. Shapes: B rows, Q new tokens, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from learn.behaviour import MAX_ANSWER_TOKENS
from learn.envs.protocol import GameEnvironment
from learn.prompts import Prompts
from starpo_train.attempts import Attempt
from starpo_train.environments import Message
from starpo_train.serve.kv import SlotCache
from starpo_train.serve.sampling import sample_tokens

STRAGGLERS = 8
"""When fewer than one row in so many still samples, they move together."""


@dataclass(slots=True, kw_only=True)
class PlayedRun:
    """One run: how it went and what was sampled."""

    attempt: Attempt
    episode: Any
    messages: list[Message]
    prompts: list[list[int]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    num_calls: int = 0
    """Tools called."""
    reward: float = 0.0
    end: str | None = None
    ids: list[int] = field(default_factory=list)
    """Tokens in its slot, the first `num_cached` of them computed."""
    num_cached: int = 0


class Lockstep:
    """Advances runs turn by turn: all prompts, then all answers, then all environments."""

    def __init__(
        self, model: Any, tokenizer: Any, environment: GameEnvironment, *, temperature: float
    ) -> None:
        self._model, self._environment, self._temperature = model, environment, temperature
        self._prompts = Prompts(tokenizer)
        self._tokenizer = tokenizer
        self._end_ids = {tokenizer.eos_token_id}

    def play(self, attempts: list[Attempt]) -> list[PlayedRun]:
        """Play these runs to their ends."""
        runs = []
        for attempt in attempts:
            episode = self._environment.start(attempt.task, attempt.seed)
            messages: list[Message] = [dict(message) for message in episode.messages]
            runs.append(PlayedRun(attempt=attempt, episode=episode, messages=messages))
        self._cache = SlotCache()
        rows = list(runs)
        for turn in range(self._environment.game.max_turns):
            self._answer(rows, turn)
            for run in rows:
                self._act(run)
            going = [run for run in rows if run.end is None]
            if not going:
                break
            self._keep(rows, going)
            rows = going
        for run in runs:
            if run.end is None:
                run.reward, run.end = run.episode.cut(), "truncated"
            run.ids = []
        return runs

    def _answer(self, rows: list[PlayedRun], turn: int) -> None:
        """Sample an answer for every row; `rows` may be put into another order."""
        for run in rows:
            prompt = self._prompts.build(run.messages, run.episode.tools)
            run.num_cached = min(common_length(run.ids, prompt, run.num_cached), len(prompt) - 1)
            run.ids = list(prompt)
            run.prompts.append(prompt)
            run.answers.append([])
        logits_BV = self._begin(rows) if turn == 0 else self._forward(rows)
        uniforms = {id(run): draw_uniforms(run.attempt.seed + turn) for run in rows}
        num_block, num_sampled = len(rows), 0  # rows that are computed: the first so many
        active = set(range(num_block))
        while True:
            token_B = sample_tokens(
                logits_BV,
                temperature_B=torch.full((num_block,), self._temperature),
                top_p_B=torch.ones(num_block),
                uniform_B=torch.tensor(
                    [uniforms[id(run)][num_sampled] for run in rows[:num_block]],
                    dtype=torch.float64,
                ),
            )
            num_sampled += 1
            tokens = token_B.tolist()
            for slot in list(active):
                run, token = rows[slot], tokens[slot]
                run.answers[-1].append(token)
                run.ids.append(token)
                if token in self._end_ids or num_sampled >= MAX_ANSWER_TOKENS:
                    active.remove(slot)
            if not active:
                return
            if len(active) * STRAGGLERS < num_block:
                active = self._move_to_front(rows, sorted(active))
                num_block = len(active)
            logits_BV = self._decode(rows[:num_block], active)

    def _act(self, run: PlayedRun) -> None:
        text = self._prompts.read(run.answers[-1])
        message = self._prompts.parse(text, has_tools=bool(run.episode.tools))
        run.messages.append(message)
        feedback = run.episode.act(message)
        run.num_calls += len(message.get("tool_calls", ()))
        run.messages += feedback.messages
        if feedback.end is not None:
            run.end, run.reward = feedback.end, float(feedback.reward)

    def _begin(self, rows: list[PlayedRun]) -> torch.Tensor:
        """First prompts: attempts at one task share theirs, so each is computed once."""
        first: dict[tuple[int, ...], int] = {}
        places = [first.setdefault(tuple(run.ids), len(first)) for run in rows]
        owners = dict(zip(reversed(places), reversed(rows), strict=True))
        logits_BV = self._forward([owners[place] for place in range(len(first))])
        for run in rows:
            run.num_cached = len(run.ids)
        self._select(places, max(run.num_cached for run in rows))
        return logits_BV[torch.tensor(places)]

    def _forward(self, rows: list[PlayedRun]) -> torch.Tensor:
        """Compute each row's ids that are not yet -> logits at its last id (B, V)."""
        starts_B = torch.tensor([run.num_cached for run in rows])
        new = [run.ids[run.num_cached :] for run in rows]
        most = max(map(len, new))
        last_B = torch.tensor([len(ids) - 1 for ids in new])
        wanted = last_B.unique()
        logits_BUV = self._run(
            torch.tensor([ids + [0] * (most - len(ids)) for ids in new]), starts_B, wanted
        )
        for run in rows:
            run.num_cached = len(run.ids)
        return logits_BUV[torch.arange(len(rows)), torch.searchsorted(wanted, last_B)]

    def _decode(self, rows: list[PlayedRun], active: set[int]) -> torch.Tensor:
        """One more token of each row; finished ones compute something that nobody reads."""
        starts_B = torch.tensor([run.num_cached for run in rows])
        ids_B1 = torch.tensor([run.ids[-1:] for run in rows])
        logits_BUV = self._run(ids_B1, starts_B, 1)
        for slot in active:
            rows[slot].num_cached += 1
        return logits_BUV[:, -1]

    def _run(self, ids_BQ: torch.Tensor, starts_B: torch.Tensor, wanted: Any) -> torch.Tensor:
        num_new = ids_BQ.shape[1]
        return self._model(
            input_ids=ids_BQ,
            attention_mask=self._cache.plan(0, starts_B, num_new),
            position_ids=starts_B[:, None] + torch.arange(num_new),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=wanted,
        ).logits

    def _keep(self, rows: list[PlayedRun], going: list[PlayedRun]) -> None:
        """Close the gaps of runs that ended."""
        if len(going) < len(rows):
            slots = {id(run): slot for slot, run in enumerate(rows)}
            longest = max(run.num_cached for run in going)
            self._select([slots[id(run)] for run in going], longest)

    def _select(self, slots: list[int], length: int) -> None:
        """Slot n becomes what slot `slots[n]` is, up to a length."""
        index = torch.tensor(slots)
        for layer in self._cache.slot_layers:
            layer.keys = layer.keys[:, :, :length].index_select(0, index)
            layer.values = layer.values[:, :, :length].index_select(0, index)

    def _move_to_front(self, rows: list[PlayedRun], active: list[int]) -> set[int]:
        """Swap the rows that still sample with the first ones -> their new slots."""
        order = list(range(len(rows)))
        free = [slot for slot in range(len(active)) if slot not in set(active)]
        for target, source in zip(free, reversed(active), strict=False):
            order[target], order[source] = source, target
        moved = [slot for slot, source in enumerate(order) if slot != source]
        index, sources = torch.tensor(moved), torch.tensor([order[slot] for slot in moved])
        if moved:
            for layer in self._cache.slot_layers:
                layer.keys[index] = layer.keys[sources]
                layer.values[index] = layer.values[sources]
        rows[:] = [rows[slot] for slot in order]
        return set(range(len(active)))


def common_length(held: list[int], prompt: list[int], num_cached: int) -> int:
    """How many of the first `num_cached` ids in a slot the prompt begins with."""
    if held[:num_cached] == prompt[:num_cached]:
        return num_cached
    pairs = zip(held[:num_cached], prompt, strict=False)
    return next((n for n, (mine, theirs) in enumerate(pairs) if mine != theirs), 0)


def draw_uniforms(seed: int) -> list[float]:
    """The uniform numbers that the server draws for a request with this seed."""
    generator = torch.Generator("cpu")
    generator.manual_seed(seed % 2**31)
    count = MAX_ANSWER_TOKENS + 24
    return torch.rand(count, generator=generator, dtype=torch.float64, device="cpu").tolist()
