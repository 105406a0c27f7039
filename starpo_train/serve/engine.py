"""Prompt ids -> sampled ids, many requests at once.

One thread owns the model. Requests wait in a queue and join the running batch between two decode
steps; a row leaves the batch the moment it is finished or cancelled, so its slot is free again.
Shapes: B rows, Q new tokens, T positions, V vocabulary.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

from starpo_train.serve.detokenize import TextBuilder
from starpo_train.serve.generation import Generation, GenerationRequest, SampledToken
from starpo_train.serve.kv import PrefixStore, SlotCache
from starpo_train.serve.sampling import sample_tokens, token_logprobs

logger = logging.getLogger(__name__)

_UNIFORM_BLOCK = 64
_PATIENCE_STEPS = 4
"""Decode steps after which waiting requests join even if they are few."""


class _Row:
    """A generation in the batch."""

    def __init__(self, generation: Generation, builder: TextBuilder) -> None:
        self.generation = generation
        self.builder = builder
        self.ids = list(generation.request.prompt_ids)
        self.num_cached = 0
        """Positions whose keys and values are in the row's slot."""
        seed = generation.request.seed
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._uniforms: list[float] = []

    def add_text(self, token_id: int) -> str:
        """The text of a token, at once when someone waits for it, else at the end."""
        if self.generation.on_token is None and not self.generation.request.stop:
            self.builder.hold(token_id)
            return ""
        return self.builder.push(token_id)

    def draw(self) -> float:
        """The next uniform number of this request's own generator."""
        if not self._uniforms:
            block = torch.rand(_UNIFORM_BLOCK, generator=self._generator, dtype=torch.float64)
            self._uniforms = block.tolist()[::-1]
        return self._uniforms.pop()


class Engine:
    """Samples from one causal language model.

    Args:
        model: a transformers causal language model with full attention, in eval mode.
        tokenizer: its tokenizer.
        max_batch: rows decoded at once.
        max_context: positions the model can attend to.
        kept_bytes: memory for keys and values of finished answers, reused by prompts that
            extend them.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_batch: int,
        max_context: int,
        kept_bytes: int = 1 << 30,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._max_batch = max_batch
        self.max_context = max_context
        self._end_ids = _end_token_ids(model, tokenizer)
        self._waiting: queue.SimpleQueue[Generation | None] = queue.SimpleQueue()
        self._cache = SlotCache()
        self._store = PrefixStore(kept_bytes)
        self._rows: list[_Row] = []
        self._logits_BV = torch.zeros(0)
        self._steps_since_join = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="starpo-engine", daemon=True)
        self._thread.start()

    @property
    def num_active(self) -> int:
        """Rows in the batch."""
        return len(self._rows)

    def submit(
        self,
        request: GenerationRequest,
        *,
        on_done: Callable[[Generation], None],
        on_token: Callable[[SampledToken], None] | None = None,
    ) -> Generation:
        """Queue a request; the callbacks run in the engine's thread."""
        generation = Generation(request=request, on_token=on_token, on_done=on_done)
        self._waiting.put(generation)
        return generation

    def close(self) -> None:
        """Cancel everything and end the thread."""
        self._stopping = True
        self._waiting.put(None)
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while not self._stopping:
            try:
                self._join_waiting()
                self._remove([row for row in self._rows if row.generation.cancelled])
                if self._rows:
                    self._decode()
            except Exception as error:
                logger.exception("sampling failed; %d requests are answered 500", len(self._rows))
                self._fail_all(error)
        self._fail_all(RuntimeError("the server is stopping"))

    def _join_waiting(self) -> None:
        """Prefill what waits, if there is room and enough of it; block while nothing runs."""
        room = self._max_batch - len(self._rows)
        few = self._waiting.qsize() * 4 < len(self._rows)
        self._steps_since_join += 1
        if room == 0 or (few and self._steps_since_join < _PATIENCE_STEPS):
            return
        joining: list[_Row] = []
        while len(joining) < room:
            try:
                generation = self._waiting.get(block=not self._rows and not joining)
            except queue.Empty:
                break
            if generation is None:
                return
            if generation.cancelled:
                _finish(generation, "cancelled")
                continue
            builder = TextBuilder(self._tokenizer, generation.request.stop)
            joining.append(_Row(generation, builder))
        if joining:
            self._steps_since_join = 0
            self._prefill(joining)

    def _prefill(self, joining: list[_Row]) -> None:
        """Compute the new part of each prompt, in slots behind the rows that already run."""
        first_slot = len(self._rows)
        self._rows += joining
        for slot, row in enumerate(joining, first_slot):
            length, kept = self._store.find(row.ids)
            row.num_cached = min(length, len(row.ids) - 1)
            if row.num_cached:
                self._cache.write(slot, kept, row.num_cached)
        joined_BV = self._forward(joining, first_slot)
        self._logits_BV = torch.cat([self._logits_BV, joined_BV]) if first_slot else joined_BV

    def _forward(self, rows: list[_Row], first_slot: int) -> torch.Tensor:
        """Feed each row's ids that are not cached yet -> logits at its last id (B, V)."""
        starts_B = torch.tensor([row.num_cached for row in rows])
        num_new = [len(row.ids) - row.num_cached for row in rows]
        most = max(num_new)
        ids_BQ = torch.tensor(
            [row.ids[row.num_cached :] + [0] * (most - new) for row, new in zip(rows, num_new)]  # noqa: B905
        )
        last_B = torch.tensor(num_new) - 1
        wanted = last_B.unique()
        logits_BUV = self._model(
            input_ids=ids_BQ,
            attention_mask=self._cache.plan(first_slot, starts_B, most),
            position_ids=starts_B[:, None] + torch.arange(most),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=wanted,
        ).logits
        for row in rows:
            row.num_cached = len(row.ids)
        return logits_BUV[torch.arange(len(rows)), torch.searchsorted(wanted, last_B)]

    def _decode(self) -> None:
        """Sample one token for every row, drop the finished rows, compute the next logits."""
        requests = [row.generation.request for row in self._rows]
        token_B = sample_tokens(
            self._logits_BV,
            temperature_B=torch.tensor([request.temperature for request in requests]),
            top_p_B=torch.tensor([request.top_p for request in requests]),
            uniform_B=torch.tensor([row.draw() for row in self._rows], dtype=torch.float64),
        )
        logprobs = token_logprobs(self._logits_BV, token_B).tolist()
        tops = self._top_logprobs(max(request.top_logprobs for request in requests))
        finished = [
            row
            for row, token_id, logprob, top in zip(
                self._rows, token_B.tolist(), logprobs, tops, strict=True
            )
            if self._append(row, token_id, logprob, top)
        ]
        self._remove(finished)
        if self._rows:
            self._logits_BV = self._forward(self._rows, 0)

    def _top_logprobs(self, count: int) -> list[list[tuple[int, float]]]:
        if count == 0:
            return [[] for _ in self._rows]
        top = self._logits_BV.float().log_softmax(-1).topk(min(count, self._logits_BV.shape[-1]))
        return [
            list(zip(ids, values, strict=True))
            for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def _append(
        self, row: _Row, token_id: int, logprob: float, top: list[tuple[int, float]]
    ) -> bool:
        """Add a sampled token to its row -> whether the row is finished."""
        generation, request = row.generation, row.generation.request
        row.ids.append(token_id)
        ended = token_id in self._end_ids
        token = SampledToken(
            token_id=token_id,
            logprob=logprob,
            top=top[: request.top_logprobs],
            text="" if ended else row.add_text(token_id),
        )
        generation.tokens.append(token)
        if generation.on_token is not None:
            generation.on_token(token)
        if ended or row.builder.stopped:
            generation.finish_reason = "stop"
        elif len(generation.tokens) >= request.max_tokens or len(row.ids) >= self.max_context:
            generation.finish_reason = "length"
        return generation.finish_reason is not None

    def _remove(self, leaving: list[_Row]) -> None:
        """Answer the rows' requests and close the gaps they leave."""
        for row in leaving:
            slot = self._rows.index(row)
            kept = self._cache.read(slot, row.num_cached)
            self._store.keep(row.ids[: row.num_cached], kept)
            last = self._rows.pop()
            if last is not row:
                self._rows[slot] = last
                self._cache.move(len(self._rows), slot, last.num_cached)
                self._logits_BV[slot] = self._logits_BV[len(self._rows)]
            self._logits_BV = self._logits_BV[: len(self._rows)]
            row.generation.tail = row.builder.finish()
            _finish(row.generation, row.generation.finish_reason or "cancelled")

    def _fail_all(self, error: BaseException) -> None:
        """Answer every request in the batch with an error (and, when stopping, in the queue)."""
        failed = [row.generation for row in self._rows]
        self._rows = []
        while self._stopping and not self._waiting.empty():
            generation = self._waiting.get()
            if generation is not None:
                failed.append(generation)
        for generation in failed:
            generation.error = error
            _finish(generation, "error")


def _finish(generation: Generation, reason: Any) -> None:
    generation.finish_reason = reason
    generation.on_done(generation)


def _end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, from the generation config and the tokenizer."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
