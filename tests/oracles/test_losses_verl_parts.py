"""What losses are made of against verl 0.9.1: means, divergences, corrections, and the value loss."""

from itertools import cycle

import torch
from loss_cases import NUM_CASES, assert_equal, compare, differentiate, make_batch
from verl.trainer.ppo import core_algos as verl
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl_losses import MODES, coefficients_as_verl

from starpo_train.losses.correction import correct_ratios
from starpo_train.losses.kl import compute_kl
from starpo_train.losses.value import compute_value_loss


def test_aggregation(write_golden):
    """`agg_loss` in its five modes, also as a share of a larger batch's denominators."""
    cases = []
    for seed, mode in zip(range(NUM_CASES), cycle(MODES), strict=False):
        batch = make_batch(seed)
        horizon = batch.uniform(5.0, 50.0)
        values_BT = batch.advantages_BT
        whole = verl.agg_loss(values_BT, batch.mask_BT, mode, loss_scale_factor=horizon)
        coefficients_A = batch.coefficients(mode, horizon)
        values_A = batch.flatten(values_BT)
        tolerance = 1e-7 if mode == "seq-mean-token-mean" else 1e-10  # verl's 1e-8 per row
        assert_equal((coefficients_A * values_A).sum(), whole, tolerance)
        shares = [
            verl.agg_loss(
                values_BT[[row]],
                batch.mask_BT[[row]],
                mode,
                batch_num_tokens=batch.mask_BT.sum(),
                global_batch_size=(batch.mask_BT.sum(1) > 0).sum(),
                loss_scale_factor=horizon,
            )
            for row in range(len(values_BT))
        ]
        ours_B = torch.zeros(len(values_BT), dtype=torch.float64)
        ours_B.index_add_(0, batch.row_of, coefficients_A * values_A)
        assert_equal(ours_B, torch.stack(shares), tolerance)
        inputs = {"num_tokens_R": batch.mask_BT.sum(1), "row_of_A": batch.row_of}
        inputs |= {"values_A": values_A, "mode": mode, "horizon": horizon}
        cases.append({"function": f"agg_loss {mode}", "inputs": inputs, "outputs": {"loss": whole}})
    write_golden("aggregation_verl", "verl", "0.9.1", cases)


def test_kl(write_golden):
    """k1, k2, k3 and their + forms: values and gradients, within limits and beyond."""
    cases = []
    for seed in range(NUM_CASES):
        batch = make_batch(seed)
        for estimator in ("k1", "k2", "k3", "k1+", "k3+"):
            leaf_BT = batch.logprobs_BT.clone().requires_grad_()
            ours_BT = compute_kl(leaf_BT, batch.behaviour_BT, estimator=estimator)
            theirs_BT = verl.kl_penalty(leaf_BT, batch.behaviour_BT, estimator)
            gradient_BT = differentiate(theirs_BT.sum(), leaf_BT)
            assert_equal(ours_BT, theirs_BT)
            assert_equal(differentiate(ours_BT.sum(), leaf_BT), gradient_BT)
            inputs = {
                "logprobs_A": batch.logprobs_BT[0],
                "reference_logprobs_A": batch.behaviour_BT[0],
            }
            outputs = {"values": theirs_BT[0], "gradient": gradient_BT[0]}
            case = {"options": {"estimator": estimator}, "inputs": inputs, "outputs": outputs}
            cases.append({"function": f"kl_penalty {estimator}"} | case)
    write_golden("kl_verl", "verl", "0.9.1", cases)


def test_value_loss(write_golden):
    """Clipped squared error: value and gradient at the predicted values."""
    cases = []
    for seed, mode in zip(range(NUM_CASES), cycle(MODES), strict=False):
        batch = make_batch(seed)
        clip = batch.uniform(0.1, 1.0)
        leaf_BT = batch.logprobs_BT.clone().requires_grad_()
        theirs, _ = verl.compute_value_loss(
            leaf_BT, batch.advantages_BT, batch.behaviour_BT, batch.mask_BT, clip, mode
        )
        gradient_A = batch.flatten(differentiate(theirs, leaf_BT))
        inputs = {
            "values_A": batch.flatten(batch.logprobs_BT),
            "old_values_A": batch.flatten(batch.behaviour_BT),
            "returns_A": batch.flatten(batch.advantages_BT),
            "coefficients_A": coefficients_as_verl(batch, mode),
        }
        oracle = (theirs, gradient_A)
        name = "compute_value_loss"
        cases.append(compare(name, compute_value_loss, inputs, {"clip": clip}, oracle))
    write_golden("value_verl", "verl", "0.9.1", cases)


def test_corrections(write_golden):
    """TIS and IcePop weights per token, and of the sequence's product."""
    cases = []
    for seed in range(2 * NUM_CASES):
        batch = make_batch(seed)
        log_ratio_BT = batch.logprobs_BT - batch.behaviour_BT
        cap, floor = batch.uniform(1.1, 5.0), batch.uniform(0.1, 0.9)
        sums_B = (log_ratio_BT * batch.mask_BT).sum(1)
        for level in ("token", "sequence"):
            log_ratios_A = batch.flatten(log_ratio_BT)
            log_ratios_A = sums_B[batch.row_of] if level == "sequence" else log_ratios_A
            for options in ({"cap": cap}, {"cap": cap, "floor": floor, "masked": True}):
                ours_A = correct_ratios(log_ratios_A, **options)
                if not ours_A.any():  # verl's metrics divide by zero then
                    continue
                threshold = f"{floor}_{cap}" if "masked" in options else cap
                theirs_BT, _ = compute_rollout_correction_weights(
                    log_ratio_BT, batch.mask_BT, level, threshold
                )
                expected_A = batch.flatten(theirs_BT)
                assert_equal(ours_A, expected_A)
                case = {"inputs": {"log_ratios_A": log_ratios_A}, "options": options}
                kind = "icepop" if "masked" in options else "tis"
                name = f"compute_rollout_correction_weights {level} {kind}"
                cases.append({"function": name, "outputs": {"weights": expected_A}} | case)
    write_golden("corrections_verl", "verl", "0.9.1", cases)
