"""verl 0.9.1's losses as functions of log-probabilities, and coefficients as it has them."""

from dataclasses import replace

from verl.trainer.ppo import core_algos as verl
from verl.workers.config import ActorConfig

MODES = (
    "token-mean",
    "token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
)
ACTOR = ActorConfig(
    strategy="fsdp",
    rollout_n=1,
    ppo_micro_batch_size_per_gpu=1,
    clip_ratio_low=0.2,
    clip_ratio_high=0.28,
    clip_ratio_c=3.0,
)


def choose_options(batch):
    return {"clip_low": batch.uniform(0.05, 0.5), "clip_high": batch.uniform(0.05, 0.5)}


def configure(options, **changes):
    return replace(
        ACTOR, clip_ratio_low=options["clip_low"], clip_ratio_high=options["clip_high"], **changes
    )


def in_verl(batch, mode, name, config, **given):
    """The named loss as a function of log-probabilities."""

    def compute(logprobs_BT):
        loss, _ = verl.get_policy_loss_fn(name)(
            old_log_prob=batch.behaviour_BT,
            log_prob=logprobs_BT,
            advantages=batch.advantages_BT,
            response_mask=batch.mask_BT,
            loss_agg_mode=mode,
            config=config,
            **given,
        )
        return loss

    return compute


def coefficients_as_verl(batch, mode):
    """Ours, with the 1e-8 that verl adds to a row's number of tokens in seq-mean-token-mean."""
    coefficients_A = batch.coefficients(mode, horizon=batch.mask_BT.shape[1])
    if mode != "seq-mean-token-mean":
        return coefficients_A
    count_B = batch.mask_BT.sum(1)
    return coefficients_A * (count_B / (count_B + 1e-8))[batch.row_of]
