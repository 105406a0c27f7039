"""Policy + TokenBatch -> log-probabilities at the trained tokens only.

Suffixes: T packed tokens, A action tokens, S turn starts, H hidden, U distinct ones of A.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from starpo_train.head import compute_logprobs
from starpo_train.pack import TokenBatch
from starpo_train.ranks import ALONE, Ranks

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScores:
    """What the policy says about the trained tokens of a pack."""

    logprobs_A: Tensor
    """float32, at the temperature of each token's turn."""
    entropies_A: Tensor
    """float32, nats; of the whole distribution at each trained token and its temperature."""


def run_here(work: Callable[[], ResultT]) -> ResultT:
    """Do some work with a model whose weights are all at hand."""
    return work()


@dataclass(slots=True, kw_only=True)
class Policy:
    """A loaded model, how it must be run, and its tokenizer."""

    model: Any
    """The transformers model; with LoRA its linear layers are wrapped in place."""
    tokenizer: Any
    device: torch.device
    autocast: bool
    """Matrix products in bfloat16."""
    packed: bool
    """Several rows per forward pass; False: one at a time."""
    shared_up_to: int
    """Longest row that may share its prefix with others; 0: none may."""
    fast_head: bool
    """The output head is one plain linear layer, so its logits may be computed in chunks."""
    lora: bool
    ranks: Ranks = ALONE
    """The processes that its weights are spread over."""
    run: Callable[[Callable[[], Any]], Any] = run_here
    """Does some work with the model's weights at hand."""

    def score_actions(self, batch: TokenBatch) -> PolicyScores:
        """Log-probabilities and entropies of a pack's trained tokens, with gradient."""
        ids_A = batch.action_ids_A.to(self.device)
        before_A = batch.predicted_at_A.to(self.device)
        heat_A = batch.temperatures_A
        heat_A = None if heat_A is None else heat_A.to(self.device)
        with self._precision():
            if not self.fast_head:
                return _score_logits(self._compute_logits(batch), ids_A, heat_A)
            scores = self.run(lambda: self._score_hidden(batch, before_A, ids_A, heat_A))
            return PolicyScores(logprobs_A=scores[0], entropies_A=scores[1])

    def _score_hidden(
        self, batch: TokenBatch, before_A: Tensor, ids_A: Tensor, heat_A: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        hidden_TH = self._compute_hidden(batch)
        head = self.model.get_output_embeddings()
        if batch.layout.is_flat:
            return compute_logprobs(hidden_TH[before_A], head.weight, head.bias, ids_A, heat_A)
        # what several rows sampled at one place is scored once
        before_U, ids_U, heat_U, of_A = _find_distinct(
            before_A, ids_A, heat_A, num_ids=self.num_vocabulary
        )
        scores = compute_logprobs(hidden_TH[before_U], head.weight, head.bias, ids_U, heat_U)
        return scores[0][of_A], scores[1][of_A]

    @property
    def attention(self) -> str:
        """`tree`, `packed` or `rows`, as in the configuration."""
        return "tree" if self.shared_up_to else "packed" if self.packed else "rows"

    @torch.no_grad()
    def compute_state_features(self, batch: TokenBatch) -> Tensor:
        """Hidden states [S, H] at the last prompt token before each trained turn, float32."""
        with self._precision():
            hidden_TH = self.run(lambda: self._compute_hidden(batch))
        return hidden_TH[batch.turn_starts_S.to(self.device)].float()

    def limit_pack(self, tokens_per_pack: int) -> int:
        """Tokens of a pack: a model that takes rows one by one passes once for each of them, and
        every rank must make as many passes as the others.
        """  # noqa: D205
        return tokens_per_pack if self.packed or self.ranks.size == 1 else 1

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and tensors that the optimizer changes, tied ones once."""
        return (item for item in self.model.named_parameters() if item[1].requires_grad)

    @property
    def num_vocabulary(self) -> int:
        """Rows of the embedding: ids at or above this cannot be trained on."""
        return self.model.get_input_embeddings().num_embeddings

    def _compute_hidden(self, batch: TokenBatch) -> Tensor:
        decoder = self.model.base_model
        parts = [
            decoder(**inputs).last_hidden_state[0] for inputs, _ in self._forward_inputs(batch)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _compute_logits(self, batch: TokenBatch) -> Tensor:
        """Logits [A, V] through whatever the model puts around its head (scaling, capping)."""
        before_A = batch.predicted_at_A
        logits = []
        for inputs, (start, end) in self._forward_inputs(batch):
            inside_A = before_A[(before_A >= start) & (before_A < end)] - start
            keep_A = inside_A.to(self.device)
            logits.append(self.model(**inputs, logits_to_keep=keep_A).logits[0])
        return torch.cat(logits)

    def _forward_inputs(
        self, batch: TokenBatch
    ) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
        """Arguments of each forward pass, and the part of T that it covers."""
        ids_T = batch.input_ids_T.to(self.device)
        if self.packed:
            positions_T = batch.position_ids_T.to(self.device)
            yield (
                {
                    "input_ids": ids_T[None],
                    "position_ids": positions_T[None],
                    "use_cache": False,
                    "tree": batch.layout,
                },
                (0, len(ids_T)),
            )
            return
        start = 0
        for length in batch.layout.lengths_M:
            row_T = ids_T[start : start + length]
            yield {"input_ids": row_T[None], "use_cache": False}, (start, start + length)
            start += length

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def _find_distinct(
    before_A: Tensor, ids_A: Tensor, heat_A: Tensor | None, *, num_ids: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Each (place, id, temperature) once, U of them, and which of them each token is."""
    keys_A = before_A * num_ids + ids_A
    if heat_A is None:
        keys_U, of_A = torch.unique(keys_A, return_inverse=True)
        return keys_U // num_ids, keys_U % num_ids, None, of_A
    heats, heat_of_A = torch.unique(heat_A, return_inverse=True)
    keys_U, of_A = torch.unique(keys_A * len(heats) + heat_of_A, return_inverse=True)
    pairs_U = keys_U // len(heats)
    return pairs_U // num_ids, pairs_U % num_ids, heats[keys_U % len(heats)], of_A


def _score_logits(logits_AV: Tensor, ids_A: Tensor, heat_A: Tensor | None) -> PolicyScores:
    logits_AV = logits_AV.float() if heat_A is None else logits_AV.float() / heat_A[:, None]
    logprobs_AV = torch.log_softmax(logits_AV, dim=-1)
    return PolicyScores(
        logprobs_A=logprobs_AV.gather(1, ids_A[:, None])[:, 0],
        entropies_A=-(logprobs_AV.exp() * logprobs_AV).sum(1),
    )
