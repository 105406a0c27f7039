"""A batch -> one training step of it, each as its library does it.

A contender leaves the batch's gradients on its model, and then takes an optimizer step at learning rate
zero, so that every round trains the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from trainlib.work import CLIP_HIGH, CLIP_LOW, Work, build_model

from starpo_train.config import (
    AlgorithmSection,
    DataSection,
    ModelSection,
    RunConfig,
    RunSection,
    TrainSection,
)
from starpo_train.model import build_policy
from starpo_train.objective import Objective
from starpo_train.optimizer import Optimizer
from starpo_train.step import build_step, compute_pack_loss
from starpo_train.trainingdata import TrainingData


@dataclass(frozen=True, kw_only=True)
class Contender:
    title: str
    loss: str
    """`starpo` or `sft`: whose gradients must be equal."""
    build: Callable[[Work], "Step"]
    only: tuple[str, ...] = ()
    """Batches that it runs; empty: all."""


@dataclass(frozen=True, kw_only=True)
class Step:
    model: nn.Module
    compute: Callable[[], float]
    """Leaves gradients; returns the loss."""
    update: Callable[[], object]
    """Clips, steps, and drops the gradients."""


def build_ours(work: Work, *, loss: str, attention: str) -> Step:
    torch.manual_seed(0)
    section = ModelSection(path="bench", device="cpu", attention=attention)
    policy = build_policy(build_model(work.vocabulary), None, section)
    config = RunConfig(
        run=RunSection(output=Path("unused")),
        data=DataSection(dataset=Path("unused")),
        model=section,
        algorithm=AlgorithmSection(
            clip_low=CLIP_LOW,
            clip_high=CLIP_HIGH,
            aggregation="traj-mean" if loss == "starpo" else "token-mean",
        ),
        train=TrainSection(tokens_per_pack=work.tokens_per_pack),
    )
    advantages = [
        work.advantages_N[n].repeat(row.num_actions).astype("float32")
        for n, row in enumerate(work.rows)
    ]
    algorithm = "starpo" if loss == "starpo" else "filtered_bc"
    objective = Objective(algorithm=algorithm, section=config.algorithm)
    nothing: Any = None
    data = TrainingData(
        manifest=nothing,
        choice=nothing,
        objective=objective,
        trajectory_ids_N=[str(n) for n in range(len(work.rows))],
        task_of_N=np.arange(len(work.rows)),
        rows=work.rows,
        rows_of_N=[[n] for n in range(len(work.rows))],
        advantages_R=advantages if loss == "starpo" else [],
        kept={},
        facts={},
    )
    optimizer = Optimizer(policy, TrainSection(learning_rate=0.0), total_steps=1)

    def compute() -> float:
        step = build_step(data, config, range(len(work.rows)), shared_up_to=policy.shared_up_to)
        total = 0.0
        for pack in step.packs:
            output = compute_pack_loss(policy, pack, objective)
            output.loss.backward()
            total += float(output.loss.detach())
        return total

    def update() -> None:
        optimizer.clip_gradients()
        optimizer.apply(0)

    return Step(model=policy.model, compute=compute, update=update)


def build_plain(work: Work) -> Step:
    """A loop as one writes it: padded rows, logits at every position, log_softmax, gather."""
    model = build_model(work.vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def compute() -> float:
        return sum(_compute_plainly(model, work, batch) for batch in work.batches)

    def update() -> None:
        clip_and_step(model, optimizer)

    return Step(model=model, compute=compute, update=update)


def _compute_plainly(model: nn.Module, work: Work, batch: list[int]) -> float:
    rows = [work.rows[i] for i in batch]
    ids_BT = _pad([row.input_ids_T for row in rows])
    lengths_B = torch.tensor([row.num_tokens for row in rows])
    mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
    logits = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1]
    logprobs_BT = torch.log_softmax(logits, -1).gather(2, ids_BT[:, 1:, None])[..., 0]
    trained_BT = _pad([row.action_mask_T for row in rows])[:, 1:]
    recorded_BT = _pad([row.logprobs_T for row in rows])[:, 1:]
    advantages_B1 = torch.from_numpy(work.advantages_N[batch])[:, None]
    ratio_BT = (logprobs_BT - recorded_BT).exp()
    held_BT = ratio_BT.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    loss_BT = -torch.min(ratio_BT * advantages_B1, held_BT * advantages_B1)
    per_row_B = (loss_BT * trained_BT).sum(1) / trained_BT.sum(1)
    loss = per_row_B.sum() / len(work.rows)
    loss.backward()
    return float(loss.detach())


def build_trl_sft(work: Work, *, packing: bool) -> Step:
    """SFTTrainer's own data preparation, collator, loss and optimizer."""
    from trainlib.trl_parts import make_sft_trainer

    trainer = make_sft_trainer(work, build_model(work.vocabulary), packing=packing)
    size = 1 if packing else work.rows_per_batch
    count = torch.tensor(work.num_actions)

    def compute() -> float:
        total = 0.0
        for at in range(0, len(trainer.train_dataset), size):
            rows = [trainer.train_dataset[i] for i in range(at, at + size)]
            inputs = trainer._prepare_inputs(trainer.data_collator(rows))
            loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=count)
            loss.backward()
            total += float(loss.detach())
        return total

    return _finish(trainer, compute)


def build_trl_grpo(work: Work) -> Step:
    """GRPOTrainer's loss on batches as its generation leaves them (made beforehand, not timed)."""
    from trainlib.trl_parts import make_grpo_trainer

    trainer = make_grpo_trainer(work, build_model(work.vocabulary))
    trainer.current_gradient_accumulation_steps = len(work.batches)
    batches = [_lay_out_completions(work, batch) for batch in work.batches]

    def compute() -> float:
        total = 0.0
        for inputs in batches:
            loss = trainer._compute_loss(trainer.model, inputs)
            loss.backward()
            total += float(loss.detach())
        return total

    return _finish(trainer, compute)


def _lay_out_completions(work: Work, batch: list[int]) -> dict[str, Tensor]:
    """The first prompt, padded on the left; all after it, of which `tool_mask` trains the answers."""
    rows = [work.rows[i] for i in batch]
    cuts = [int(row.action_mask_T.argmax()) for row in rows]
    widest = max(cuts)
    pairs = list(zip(rows, cuts, strict=True))
    prompts = [
        pad(torch.from_numpy(row.input_ids_T[:cut]), (widest - cut, 0)) for row, cut in pairs
    ]
    prompt_mask = [pad(torch.ones(cut, dtype=torch.long), (widest - cut, 0)) for cut in cuts]
    completions = [row.input_ids_T[cut:] for row, cut in pairs]
    return {
        "prompt_ids": torch.stack(prompts),
        "prompt_mask": torch.stack(prompt_mask),
        "completion_ids": _pad(completions),
        "completion_mask": _pad([ids * 0 + 1 for ids in completions]),
        "tool_mask": _pad([row.action_mask_T[cut:].astype("int64") for row, cut in pairs]),
        "old_per_token_logps": _pad([row.logprobs_T[cut:] for row, cut in pairs]),
        "advantages": torch.from_numpy(work.advantages_N[batch]),
    }


def _finish(trainer: Any, compute: Callable[[], float]) -> Step:
    trainer.model.train()
    optimizer = trainer.create_optimizer()

    def update() -> None:
        clip_and_step(trainer.model, optimizer)

    return Step(model=trainer.model, compute=compute, update=update)


def clip_and_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _pad(arrays: list[Any]) -> Tensor:
    return pad_sequence([torch.from_numpy(array) for array in arrays], batch_first=True)


CONTENDERS = {
    "ours": Contender(
        title="Starpo, StarPO's loss",
        loss="starpo",
        build=lambda work: build_ours(work, loss="starpo", attention="tree"),
    ),
    "ours-packed": Contender(
        title="Starpo, StarPO's loss, packed rows",
        loss="starpo",
        build=lambda work: build_ours(work, loss="starpo", attention="packed"),
        only=("groups",),
    ),
    "trl-grpo": Contender(title="TRL GRPOTrainer", loss="starpo", build=build_trl_grpo),
    "plain": Contender(title="plain loop, padded", loss="starpo", build=build_plain),
    "ours-bc": Contender(
        title="Starpo, filtered BC",
        loss="sft",
        build=lambda work: build_ours(work, loss="sft", attention="tree"),
    ),
    "trl-sft": Contender(
        title="TRL SFTTrainer, padding-free",
        loss="sft",
        build=lambda work: build_trl_sft(work, packing=False),
    ),
    "trl-sft-packed": Contender(
        title="TRL SFTTrainer, packing (bfd, 8,192)",
        loss="sft",
        build=lambda work: build_trl_sft(work, packing=True),
    ),
}
