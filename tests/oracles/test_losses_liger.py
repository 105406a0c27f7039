"""Losses against Liger's chunked GRPO: its loss function in float64, and the whole of it.

The whole goes from hidden states through the head to the loss in float32, chunk by chunk.
"""

from itertools import cycle

import torch
from liger_kernel.chunked_loss.grpo_loss import (
    LigerFusedLinearGRPOFunction,
    LigerFusedLinearGRPOLoss,
)
from loss_cases import NUM_CASES, assert_equal, compare_token_loss, differentiate, make_batch

from starpo_train.losses.cispo import compute_cispo_trl_loss
from starpo_train.losses.gspo import compute_gspo_loss
from starpo_train.losses.kl import compute_kl
from starpo_train.losses.ppo_clip import compute_ppo_clip_loss
from starpo_train.losses.sapo import compute_sapo_loss

MODE_OF = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "cispo": "token-mean",
    "sapo": "seq-mean-token-mean",
}
SINGLE = 1e-6
VOCABULARY = 11


def choose(batch, loss_type):
    """Our loss with its options, and Liger's options."""
    low, high = batch.uniform(0.05, 0.5), batch.uniform(0.05, 0.5)
    theirs = {"epsilon_low": low, "epsilon_high": high, "beta": 0.0, "loss_type": loss_type}
    if loss_type == "cispo":
        return (
            compute_cispo_trl_loss,
            {"ratio_cap": high + 0.7},
            theirs | {"epsilon_high": high + 0.7},
        )
    if loss_type == "sapo":
        return compute_sapo_loss, {}, theirs
    delta = batch.uniform(1.6, 3.0)
    options = {"clip_low": low, "clip_high": high, "dual_clip": delta}
    return compute_ppo_clip_loss, options, theirs | {"delta": delta}


def test_loss_function(write_golden):
    """`ppo_loss_fn` of six kinds in float64: value and gradient at the log-probabilities."""
    cases = []
    for seed, (loss_type, mode) in zip(range(6 * 40), cycle(MODE_OF.items()), strict=False):
        batch = make_batch(seed, spread=0.6, rows_alike=True, empty_rows=False)
        ours, options, theirs = choose(batch, loss_type)
        horizon = 5 + seed % 20

        def oracle(logprobs_BT, batch=batch, theirs=theirs, horizon=horizon):
            loss, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
                logprobs_BT,
                batch.mask_BT,
                batch.advantages_BT[:, 0],
                batch.mask_BT,
                old_per_token_logps=batch.behaviour_BT,
                max_completion_length=horizon,
                **theirs,
            )
            return loss

        factors_A = batch.coefficients(mode, horizon)
        cases.append(compare_token_loss(loss_type, ours, oracle, batch, factors_A, options))
    write_golden("losses_liger", "liger_kernel", "0.8.5", cases)


def test_chunked_from_hidden_states():
    """The whole of it with a KL penalty: loss and gradients at hidden states and head, to 1e-6."""
    for seed, (loss_type, mode) in zip(range(NUM_CASES), cycle(MODE_OF.items()), strict=False):
        batch = make_batch(seed, spread=0.4, rows_alike=True, empty_rows=False)
        ours, options, theirs = choose(batch, loss_type)
        theirs["beta"] = beta = batch.uniform(0.01, 0.2)
        score = make_head(batch)
        horizon = 5 + seed % 20
        liger = LigerFusedLinearGRPOLoss(
            compiled=False, use_ref_model=True, max_completion_length=horizon, **theirs
        )
        leaves, ids_BT = score["leaves"], score["ids_BT"]
        narrow = [leaf.detach().float().requires_grad_() for leaf in leaves]
        logprobs_BT = compute_logprobs(*leaves, ids_BT)
        behaviour_BT = logprobs_BT.detach() + batch.behaviour_BT - batch.logprobs_BT
        reference_BT = logprobs_BT.detach() + score["noise_BT"]
        expected, _ = liger(
            *narrow,
            ids_BT,
            batch.mask_BT.float(),
            batch.advantages_BT[:, 0].float(),
            ref_per_token_logps=reference_BT.float(),
            old_per_token_logps=behaviour_BT.float(),
        )
        factors_A = batch.coefficients(mode, horizon)
        logprobs_A = batch.flatten(logprobs_BT)
        given = [batch.flatten(x) for x in (behaviour_BT, batch.advantages_BT)]
        loss = ours(logprobs_A, *given, factors_A, **options).loss
        loss = loss + beta * (factors_A * compute_kl(logprobs_A, batch.flatten(reference_BT))).sum()
        assert_equal(loss, expected, SINGLE)
        for gradient, leaf in zip(torch.autograd.grad(loss, leaves), narrow, strict=True):
            (their_gradient,) = torch.autograd.grad(expected, leaf, retain_graph=True)
            assert_equal(gradient, their_gradient, SINGLE)


def make_head(batch):
    """Hidden states, a head and sampled ids that give every row its log-probabilities."""
    rows, columns = batch.mask_BT.shape

    def normal(*shape):
        values = torch.randn(*shape, generator=batch.generator, dtype=torch.float64)
        return values.float().double()

    hidden_BTH = normal(rows, columns, 8).requires_grad_()
    weight_VH = (0.5 * normal(VOCABULARY, 8)).requires_grad_()
    ids_BT = torch.randint(VOCABULARY, (rows, columns), generator=batch.generator)
    noise_BT = 0.3 * normal(rows, columns)
    return {"leaves": (hidden_BTH, weight_VH), "ids_BT": ids_BT, "noise_BT": noise_BT}


def compute_logprobs(hidden_BTH, weight_VH, ids_BT):
    logprobs_BTV = (hidden_BTH @ weight_VH.T).log_softmax(-1)
    return logprobs_BTV.gather(-1, ids_BT[..., None])[..., 0]


def test_gspo():
    """Sequence ratios in Liger's loss function, value and gradient."""
    for seed in range(NUM_CASES):
        batch = make_batch(seed, spread=0.4, rows_alike=True, empty_rows=False)
        low, high = batch.uniform(0.05, 0.5), batch.uniform(0.05, 0.5)
        leaf_BT = batch.logprobs_BT.clone().requires_grad_()
        theirs, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
            leaf_BT,
            batch.mask_BT,
            batch.advantages_BT[:, 0],
            batch.mask_BT,
            old_per_token_logps=batch.behaviour_BT,
            epsilon_low=low,
            epsilon_high=high,
            beta=0.0,
            loss_type="grpo",
            importance_sampling_level="sequence",
        )
        ours = compute_gspo_loss(
            batch.means(leaf_BT - batch.behaviour_BT),
            batch.flatten(batch.advantages_BT),
            batch.row_of,
            batch.coefficients("seq-mean-token-mean"),
            clip_low=low,
            clip_high=high,
        ).loss
        assert_equal(ours, theirs)
        assert_equal(differentiate(ours, leaf_BT), differentiate(theirs, leaf_BT))
