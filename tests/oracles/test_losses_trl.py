"""Losses against TRL 1.16's `_compute_loss`, on random batches: values and gradients to 1e-10.

The trainers' methods run as they are; what they ask of a model is answered with given
log-probabilities. TRL counts rows without a trained token in its means, so batches have none.
"""

from collections import defaultdict
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch
from loss_cases import (
    NUM_CASES,
    assert_equal,
    compare,
    compare_token_loss,
    differentiate,
    make_batch,
)
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from starpo_train.losses.cispo import compute_cispo_loss, compute_cispo_trl_loss
from starpo_train.losses.correction import mask_off_policy_sequences
from starpo_train.losses.dpo import compute_dpo_loss
from starpo_train.losses.gspo import compute_gspo_loss
from starpo_train.losses.kl import compute_kl
from starpo_train.losses.kto import compute_kto_loss
from starpo_train.losses.overlong import compute_overlong_penalty
from starpo_train.losses.ppo_clip import compute_ppo_clip_loss
from starpo_train.losses.sapo import compute_sapo_loss

VERSION = "1.16.0"
MODE_OF = {
    "grpo": "seq-mean-token-mean",
    "sapo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "cispo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "luspo": "seq-mean-token-sum",
}
ACCELERATOR = SimpleNamespace(
    num_processes=1,
    sync_gradients=True,
    device=torch.device("cpu"),
    gather=lambda values: values,
    gather_for_metrics=lambda values: values,
    reduce=lambda values, reduction: values,
)


class Scored(GRPOTrainer):
    """A trainer without a model: log-probabilities are what it is given."""

    def __init__(self, *, loss_type, clips, level="token", beta=0.0, delta=None, horizon=1):
        self.args = SimpleNamespace(
            delta=delta,
            use_bias_correction_kl=False,
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.25,  # TRL makes it float32, which holds this exactly
            steps_per_generation=1,
        )
        self.loss_type, self.importance_sampling_level, self.beta = loss_type, level, beta
        self.epsilon_low, self.epsilon_high = clips["clip_low"], clips["clip_high"]
        self.max_completion_length = horizon
        self.off_policy_mask_threshold, self.top_entropy_quantile = None, 1.0
        self.use_vllm = self.aux_loss_enabled = self._entropy_bonus_enabled = False
        self.current_gradient_accumulation_steps = 1
        self.model = SimpleNamespace(training=True)
        self.accelerator = ACCELERATOR
        self._metrics = {"train": defaultdict(list)}

    def _get_per_token_logps_and_entropies(self, model, *_, **__):
        return model, torch.zeros_like(model), None

    def compute(self, batch, logprobs_BT, **inputs):
        ids = torch.zeros(batch.mask_BT.shape, dtype=torch.long)
        given = {
            "prompt_ids": ids[:, :0],
            "prompt_mask": ids[:, :0],
            "completion_ids": ids,
            "completion_mask": batch.mask_BT,
            "advantages": batch.advantages_BT,
            "old_per_token_logps": batch.behaviour_BT,
            "num_items_in_batch": batch.mask_BT.sum(),
        }
        return self._compute_loss(logprobs_BT, given | inputs)


def make(seed, **options):
    return make_batch(seed, spread=0.4, empty_rows=False, **options)


def choose_clips(batch):
    return {"clip_low": batch.uniform(0.05, 0.5), "clip_high": batch.uniform(0.05, 0.5)}


def test_every_loss_on_tokens(write_golden):
    """GRPO, BNPO, DAPO, Dr.GRPO and LUSPO (PPO's clip, five means), CISPO and SAPO."""
    cases = []
    for seed, (loss_type, mode) in zip(range(7 * 50), cycle(MODE_OF.items()), strict=False):
        batch = make(seed)
        clips, horizon = choose_clips(batch), 5 + seed % 20
        ours, options = compute_ppo_clip_loss, clips
        if loss_type == "cispo":
            clips = {"clip_low": 0.0, "clip_high": batch.uniform(0.7, 3.0)}
            ours, options = compute_cispo_trl_loss, {"ratio_cap": clips["clip_high"]}
        if loss_type == "sapo":
            ours, options = compute_sapo_loss, {"tau_negative": 1.25}
        trainer = Scored(loss_type=loss_type, clips=clips, horizon=horizon)
        oracle = lambda logprobs, t=trainer, b=batch: t.compute(b, logprobs)  # noqa: E731
        factors_A = batch.coefficients(mode, horizon)
        cases.append(compare_token_loss(loss_type, ours, oracle, batch, factors_A, options))
    write_golden("losses_trl", "trl", VERSION, cases)


def test_delta_is_the_dual_clip():
    """TRL's delta, a cap on rho where it is not clipped, above 1 + high: our dual clip of that."""
    for seed in range(NUM_CASES):
        batch = make_batch(seed, spread=2.0, empty_rows=False)
        clips, delta = choose_clips(batch), batch.uniform(1.6, 5.0)
        trainer = Scored(loss_type="bnpo", clips=clips, delta=delta)
        oracle = lambda logprobs, t=trainer, b=batch: t.compute(b, logprobs)  # noqa: E731
        factors_A = batch.coefficients("token-mean")
        options = clips | {"dual_clip": delta}
        compare_token_loss("bnpo", compute_ppo_clip_loss, oracle, batch, factors_A, options)


def test_kl_penalty():
    """GRPO with beta: the policy loss and beta * k3, which TRL has without limits."""
    for seed in range(NUM_CASES):
        batch = make(seed)
        clips, beta = choose_clips(batch), batch.uniform(0.01, 1.0)
        noise_BT = torch.randn(batch.mask_BT.shape, generator=batch.generator).double()
        reference_BT = batch.logprobs_BT + 0.5 * noise_BT
        leaf_BT = batch.logprobs_BT.clone().requires_grad_()
        trainer = Scored(loss_type="grpo", clips=clips, beta=beta)
        theirs = trainer.compute(batch, leaf_BT, ref_per_token_logps=reference_BT)
        factors_A = batch.coefficients("seq-mean-token-mean")
        behaviour_A, advantages_A = map(batch.flatten, (batch.behaviour_BT, batch.advantages_BT))
        logprobs_A = batch.flatten(leaf_BT)
        policy = compute_ppo_clip_loss(logprobs_A, behaviour_A, advantages_A, factors_A, **clips)
        kl_A = compute_kl(logprobs_A, batch.flatten(reference_BT))
        ours = policy.loss + beta * (factors_A * kl_A).sum()
        assert_equal(ours, theirs)
        assert_equal(differentiate(ours, leaf_BT), differentiate(theirs, leaf_BT))


def test_gspo(write_golden):
    """Sequence-level ratios: values, and the gradients of one ratio per row, in three means.

    Advantages differ within rows as well: both have the gradient of the sequence's ratio.
    """
    cases = []
    types = cycle(("grpo", "dapo", "dr_grpo"))
    for seed, loss_type in zip(range(NUM_CASES), types, strict=False):
        batch = make(seed)
        clips, horizon = choose_clips(batch), 5 + seed % 20
        leaf_BT = batch.logprobs_BT.clone().requires_grad_()
        trainer = Scored(loss_type=loss_type, clips=clips, level="sequence", horizon=horizon)
        theirs = trainer.compute(batch, leaf_BT)
        inputs = {
            "log_ratio_means_N": batch.means(batch.logprobs_BT - batch.behaviour_BT),
            "advantages_A": batch.flatten(batch.advantages_BT),
            "trajectory_of_A": batch.row_of,
            "coefficients_A": batch.coefficients(MODE_OF[loss_type], horizon),
        }
        gradient_N = differentiate(theirs, leaf_BT).sum(1)
        oracle = (theirs, gradient_N)
        cases.append(compare(f"gspo {loss_type}", compute_gspo_loss, inputs, clips, oracle))
    write_golden("gspo_trl", "trl", VERSION, cases)


def test_off_policy_sequence_mask(write_golden):
    """Which tokens count: the mask itself."""
    cases = []
    for seed in range(NUM_CASES):
        batch = make_batch(seed, spread=0.5, empty_rows=False)
        threshold = batch.uniform(-0.2, 0.3)
        theirs_BT = GRPOTrainer.get_off_policy_mask(
            batch.advantages_BT, batch.logprobs_BT, batch.behaviour_BT, batch.mask_BT, threshold
        )
        inputs = {
            "log_ratio_means_N": batch.means(batch.logprobs_BT - batch.behaviour_BT),
            "advantages_A": batch.flatten(batch.advantages_BT),
            "trajectory_of_A": batch.row_of,
        }
        options = {"threshold": threshold}
        expected_A = batch.flatten(theirs_BT)
        assert_equal(mask_off_policy_sequences(*inputs.values(), **options), expected_A)
        case = {"inputs": inputs, "options": options, "outputs": {"weights": expected_A}}
        cases.append({"function": "get_off_policy_mask"} | case)
    write_golden("off_policy_mask_trl", "trl", VERSION, cases)


def answer(logprobs_BT):
    """What a TRL model returns for a batch."""
    return SimpleNamespace(
        log_probs=logprobs_BT,
        entropy=torch.zeros_like(logprobs_BT),
        mean_logits=torch.zeros_like(logprobs_BT),
        is_top1=torch.zeros_like(logprobs_BT, dtype=torch.bool),
        aux_loss=None,
    )


def test_kto(write_golden):
    """Good and bad rows, also all of one kind; z given, also below 0; unequal weights."""
    cases = []
    for seed in range(NUM_CASES):
        batch = make(seed)
        rows = len(batch.mask_BT)
        label_N = torch.rand(rows, generator=batch.generator) < (seed % 4) / 3
        divergence = batch.uniform(-1.0, 2.0)
        options = {
            "divergence": divergence,
            "beta": batch.uniform(0.05, 1.0),
            "desirable_weight": batch.uniform(0.5, 2.0),
            "undesirable_weight": batch.uniform(0.5, 2.0),
        }
        reference_N = (batch.behaviour_BT * batch.mask_BT).sum(1)
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=ACCELERATOR,
            aux_loss_enabled=False,
            precompute_ref_logps=True,
            calculate_KL=True,
            loss_type="kto",
            _compute_kl_logps=lambda *_, z=divergence, n=rows: torch.full(
                (n,), z, dtype=torch.float64
            ),
            _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0,
            _tp_size=1,
            beta=options["beta"],
            desirable_weight=options["desirable_weight"],
            undesirable_weight=options["undesirable_weight"],
        )
        mask = torch.nn.functional.pad(batch.mask_BT, (1, 0))
        leaf_BT = (batch.logprobs_BT * batch.mask_BT).requires_grad_()
        given = {
            "label": label_N,
            "input_ids": torch.zeros_like(mask, dtype=torch.long),
            "attention_mask": mask,
            "completion_mask": mask,
            "ref_logps": reference_N,
            "ref_KL_logps": torch.zeros(rows).double(),
        }
        model = lambda *_, leaf=leaf_BT, **__: answer(leaf)  # noqa: E731
        theirs = KTOTrainer._compute_loss(trainer, model, given, return_outputs=False)
        inputs = {
            "logprobs_N": leaf_BT.sum(1),
            "reference_logprobs_N": reference_N,
            "desirable_N": label_N,
        }
        oracle = (theirs, differentiate(theirs, leaf_BT)[:, 0])
        cases.append(compare("kto", compute_kto_loss, inputs, options, oracle))
    write_golden("kto_trl", "trl", VERSION, cases)


def test_dpo(write_golden):
    """Sigmoid DPO; TRL's rows are the better halves, then the worse ones."""
    cases = []
    for seed in range(NUM_CASES):
        batch = make(seed)
        rows = len(batch.mask_BT) // 2 * 2
        if rows == 0:
            continue
        mask_BT = batch.mask_BT[:rows]
        leaf_BT = (batch.logprobs_BT[:rows] * mask_BT).requires_grad_()
        reference_N = (batch.behaviour_BT[:rows] * mask_BT).sum(1)
        beta, mask = batch.uniform(0.05, 1.0), torch.nn.functional.pad(mask_BT, (1, 0))
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=ACCELERATOR,
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=["sigmoid"],
            loss_weights=[1.0],
            label_smoothing=0.0,
            beta=beta,
            use_weighting=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _total_train_tokens=0,
            _tp_size=1,
        )
        given = {
            "input_ids": torch.zeros_like(mask, dtype=torch.long),
            "attention_mask": mask,
            "completion_mask": mask,
            "ref_chosen_logps": reference_N[: rows // 2],
            "ref_rejected_logps": reference_N[rows // 2 :],
        }
        model = lambda *_, leaf=leaf_BT, **__: answer(leaf)  # noqa: E731
        theirs = DPOTrainer._compute_loss(trainer, model, given, return_outputs=False)
        better = torch.arange(rows // 2)
        inputs = {
            "logprobs_N": leaf_BT.sum(1),
            "reference_logprobs_N": reference_N,
            "pairs_P2": torch.stack([better, better + rows // 2], dim=1),
        }
        oracle = (theirs, differentiate(theirs, leaf_BT)[:, 0])
        cases.append(compare("dpo", compute_dpo_loss, inputs, {"beta": beta}, oracle))
    write_golden("dpo_trl", "trl", VERSION, cases)


def test_overlong_penalty():
    """DAPO's soft punishment for every length up to beyond the limit."""
    for limit, buffer in ((100, 20), (64, 64), (10, 1)):
        lengths = list(range(2 * limit))
        theirs = get_soft_overlong_punishment(limit, buffer)([[0] * n for n in lengths])
        ours = compute_overlong_penalty(torch.tensor(lengths), max_length=limit, buffer=buffer)
        assert_equal(ours, theirs)


def test_rows_without_a_trained_token_count_in_trl():
    """Terms 1, 1 and nothing: TRL's mean over three rows is -2/3, ours and verl's over two -1."""
    batch = make_batch(2, spread=0.1)
    ones_BT = torch.ones(3, 1, dtype=torch.float64)
    batch = type(batch)(
        logprobs_BT=-ones_BT,
        behaviour_BT=-ones_BT,
        advantages_BT=ones_BT,
        mask_BT=torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64),
        generator=batch.generator,
    )
    trainer = Scored(loss_type="grpo", clips={"clip_low": 0.2, "clip_high": 0.2})
    given = [batch.flatten(x) for x in (batch.logprobs_BT, batch.behaviour_BT, ones_BT)]
    ours = compute_ppo_clip_loss(*given, batch.coefficients("seq-mean-token-mean"))
    assert trainer.compute(batch, batch.logprobs_BT).item() == pytest.approx(-2 / 3)
    assert ours.loss.item() == pytest.approx(-1.0)


def test_cispo_caps_differ():
    """rho = 2, log pi = -1, A = 1, epsilon_high = 1.5: TRL weighs by 1.5; 1 + 1.5 would let 2 pass."""
    one = torch.ones(1, dtype=torch.float64)
    batch = make_batch(1, spread=0.1)
    batch = type(batch)(
        logprobs_BT=-one[None],
        behaviour_BT=-one[None] - torch.tensor(2.0).double().log(),
        advantages_BT=one[None],
        mask_BT=one[None],
        generator=batch.generator,
    )
    trainer = Scored(loss_type="cispo", clips={"clip_low": 0.2, "clip_high": 1.5})
    given = [batch.flatten(x) for x in (batch.logprobs_BT, batch.behaviour_BT, one[None])]
    assert trainer.compute(batch, batch.logprobs_BT).item() == pytest.approx(1.5)
    assert compute_cispo_trl_loss(*given, one, ratio_cap=1.5).loss.item() == pytest.approx(1.5)
    assert compute_cispo_loss(*given, one, clip_high=1.5).loss.item() == pytest.approx(2.0)


def test_trl_does_not_limit_log_ratios():
    """log pi - log mu = 25, A = -1: TRL's term is e^25; ours e^20, without a gradient."""
    one = torch.ones(1, dtype=torch.float64)
    batch = make_batch(1, spread=0.1)
    batch = type(batch)(
        logprobs_BT=-one[None],
        behaviour_BT=-26.0 * one[None],
        advantages_BT=-one[None],
        mask_BT=one[None],
        generator=batch.generator,
    )
    trainer = Scored(loss_type="grpo", clips={"clip_low": 0.2, "clip_high": 0.2})
    leaf = -one.clone().requires_grad_()
    ours = compute_ppo_clip_loss(leaf, -26.0 * one, -one, one)
    assert trainer.compute(batch, batch.logprobs_BT).log().item() == pytest.approx(25.0)
    assert ours.loss.log().item() == pytest.approx(20.0)
