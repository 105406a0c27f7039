"""A loaded model -> the ways in which it may be run, found by trying them on a few random tokens.

A way is taken where it gives the log-probabilities of the model's own forward pass; nothing is decided
by the architecture's name.
"""

from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from starpo_train.attention import PACKED_ATTENTION
from starpo_train.config import ModelSection
from starpo_train.errors import ModelError
from starpo_train.pack import pack_rows
from starpo_train.policy import Policy
from starpo_train.tokens import TokenSequence

PROBE_TOLERANCE: Final = 1e-4
"""Nats."""


def configure_policy(policy: Policy, section: ModelSection, *, tree: bool) -> Policy:
    """Decide how the model runs by comparing against its plain forward pass on random tokens.

    `tree`: `auto` may choose one.

    Raises:
        ModelError: none of the ways that were asked for gives the model's own numbers.
    """
    rows, expected_A = _probe_rows(policy), probe_plainly(policy)
    head = policy.model.get_output_embeddings()
    own_attention = policy.model.config._attn_implementation
    wanted = section.attention
    if wanted != "rows":
        policy.model.set_attn_implementation(PACKED_ATTENTION)
    candidates = [(True, True), (True, False)] if wanted != "rows" else []
    if wanted in ("auto", "rows"):
        candidates += [(False, True), (False, False)]
    worst = float("inf")
    for packed, fast_head in candidates:
        if fast_head and type(head) is not nn.Linear:
            continue
        if not packed and policy.model.config._attn_implementation == PACKED_ATTENTION:
            policy.model.set_attn_implementation(own_attention)  # eager, where it caps scores
        trial = replace(policy, packed=packed, fast_head=fast_head, autocast=False)
        error = _probe_error(trial, rows, expected_A, share=False)
        shared_up_to = 0
        # on CUDA a tree has not been run yet, and is for those who ask for it
        is_wanted = wanted == "tree" or (wanted == "auto" and tree)
        if packed and error <= PROBE_TOLERANCE and is_wanted:
            error_in_tree = _probe_error(trial, rows, expected_A, share=True)
            if error_in_tree <= PROBE_TOLERANCE:
                shared_up_to = _find_window(policy.model)
            elif wanted == "tree":
                error = error_in_tree
        worst = min(worst, error)
        if error <= PROBE_TOLERANCE:
            return replace(trial, autocast=policy.autocast, shared_up_to=shared_up_to)
    raise ModelError(
        f"model.attention = {wanted!r}: log-probabilities of {section.path!r} differ by {worst:.2g} "
        "nats from the model's own forward pass; use 'auto' or 'rows'."
    )


def _find_window(model: Any) -> int:
    """Longest row in which every token sees all before it."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return 1 << 62 if window is None else int(window)


@torch.no_grad()
def probe_plainly(policy: Policy) -> Tensor:
    """What the model's own forward pass gives for the probe's rows."""
    return torch.cat([_plain_logprobs(policy.model, ids_T) for ids_T in _probe_rows(policy)])


def _probe_rows(policy: Policy) -> list[Tensor]:
    """Random rows, two of which begin alike."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(policy.num_vocabulary, (length,), generator=generator)
        for length in (7, 12, 3)
    ]
    rows[1][:4] = rows[0][:4]
    return [ids_T.to(policy.device) for ids_T in rows]


def _probe_error(policy: Policy, rows: list[Tensor], expected_A: Tensor, *, share: bool) -> float:
    batch = pack_rows([_as_row(ids_T) for ids_T in rows], range(len(rows)), share=share)
    try:
        with torch.no_grad():
            scores = policy.score_actions(batch)
    except (TypeError, NotImplementedError, AttributeError, KeyError, RuntimeError):
        return float("inf")  # an architecture that cannot be run this way
    return float((scores.logprobs_A - expected_A).abs().max())


def _as_row(ids_T: Tensor) -> TokenSequence:
    """A row of which every token but the first is trained."""
    trained_T = np.arange(len(ids_T)) > 0
    return TokenSequence(
        trajectory=0,
        input_ids_T=ids_T.cpu().numpy(),
        action_mask_T=trained_T,
        turn_T=trained_T - 1,
        turn_end_mask_T=np.zeros_like(trained_T),
        turn_start_mask_T=np.zeros_like(trained_T),
        logprobs_T=None,
        recorded=True,
    )


def _plain_logprobs(model: Any, ids_T: Tensor) -> Tensor:
    logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits_TV.float(), -1).gather(1, ids_T[1:, None])[:, 0]
