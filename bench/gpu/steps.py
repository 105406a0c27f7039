"""A group of runs -> time, tokens a second, share of the matmul ceiling and peak memory of a step."""

from typing import Any

import torch
from clock import free, measure, measure_peak_mib, summarize
from shapes import (
    SIZES,
    build_model,
    build_turn_rows,
    build_whole_rows,
    count_flops,
    make_group,
)
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from starpo_train.config import AlgorithmSection, ModelSection, TrainSection
from starpo_train.model import build_policy
from starpo_train.objective import Objective
from starpo_train.optimizer import Optimizer
from starpo_train.pack import pack_all
from starpo_train.step import StepPack, compute_pack_loss
from starpo_train.tokens import TokenSequence

ROWS_OF_PLAIN_LOOP = 2


def measure_ours(
    size: str,
    rows: list[TokenSequence],
    *,
    device: str,
    tokens_per_pack: int,
    repeats: int,
    section: dict[str, Any],
    is_deterministic: bool = False,
) -> dict[str, Any]:
    """StarPO's clipped loss over all rows, with gradients and one AdamW step."""
    free(device)
    policy = build_policy(
        build_model(size, device=device), None, ModelSection(path=size, **section)
    )
    optimizer = Optimizer(policy, TrainSection(learning_rate=1e-6), total_steps=1000)
    num_actions = sum(row.num_actions for row in rows)
    packs = [
        StepPack(
            batch=batch,
            trajectory_of_A=batch.row_of_A,
            coefficients_A=batch.weights_A / num_actions,
            advantages_A=torch.ones(batch.num_actions),
        )
        for _, batch in pack_all(
            rows,
            range(len(rows)),
            tokens_per_pack=tokens_per_pack,
            shared_up_to=policy.shared_up_to,
        )
    ]
    objective = Objective(algorithm="starpo", section=AlgorithmSection())

    def step() -> None:
        for pack in packs:
            compute_pack_loss(policy, pack, objective).loss.backward()
        optimizer.clip_gradients()
        optimizer.apply(0)

    torch.use_deterministic_algorithms(is_deterministic)
    step()  # the optimizer's state belongs to what is held before
    peak = measure_peak_mib(step, device=device)
    seconds = measure(step, device=device, repeats=repeats, warmups=1)
    torch.use_deterministic_algorithms(False)
    flops = count_flops(size, [row.num_tokens for row in rows], num_actions, is_lora=policy.lora)
    return {
        **summarize(seconds),
        "peak_mib": peak,
        "packs": len(packs),
        "computed_tokens": sum(pack.batch.num_tokens for pack in packs),
        "flops": flops,
    }


def measure_plain(
    size: str, rows: list[TokenSequence], *, device: str, repeats: int
) -> dict[str, Any]:
    """What a loop over transformers does: padded batches, all logits, cross entropy, AdamW."""
    free(device)
    model = build_model(size, device=device)
    model.train()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device == "cuda")
    ordered = sorted(rows, key=lambda row: row.num_tokens)
    batches = []
    for start in range(0, len(ordered), ROWS_OF_PLAIN_LOOP):
        part = ordered[start : start + ROWS_OF_PLAIN_LOOP]
        ids = [torch.from_numpy(row.input_ids_T) for row in part]
        labels = [
            torch.where(torch.from_numpy(row.action_mask_T), x, -100)
            for row, x in zip(part, ids, strict=True)
        ]
        batches.append(
            (
                pad_sequence(ids, batch_first=True).to(device),
                pad_sequence([torch.ones_like(x) for x in ids], batch_first=True).to(device),
                pad_sequence(labels, batch_first=True, padding_value=-100).to(device),
            )
        )

    def step() -> None:
        for ids, mask, labels in batches:
            with torch.autocast(device, dtype=torch.bfloat16):
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    step()
    peak = measure_peak_mib(step, device=device)
    seconds = measure(step, device=device, repeats=repeats, warmups=1)
    num_actions = sum(row.num_actions for row in rows)
    flops = count_flops(size, [row.num_tokens for row in rows], num_actions)
    return {
        **summarize(seconds),
        "peak_mib": peak,
        "packs": len(batches),
        "computed_tokens": sum(ids.numel() for ids, _, _ in batches),
        "flops": flops,
    }


def measure_steps(
    *, device: str, is_tiny: bool, sizes: list[str], ceiling: float
) -> dict[str, Any]:
    """Every layout of the smaller model, then the larger ones packed."""
    shape = {"prompt": 24, "seen": 6, "said": 4} if is_tiny else PROMPTS
    repeats, pack = (1, 1024) if is_tiny else (5, 16384)
    bfloat16 = {"precision": "bfloat16", "attention": "packed"}
    tree = bfloat16 | {"attention": "tree"}
    results: dict[str, Any] = {}
    for size in sizes:
        group = make_group(num_vocabulary=SIZES[size]["vocab"], **shape)
        whole, by_turn = build_whole_rows(group), build_turn_rows(group)
        run_tokens = sum(row.num_tokens for row in whole)

        def note(
            name: str, found: dict[str, Any], size: str = size, run_tokens: int = run_tokens
        ) -> None:
            found["run_tokens_per_s"] = run_tokens / found["median_s"]
            found["share_of_ceiling"] = found["flops"] / found["median_s"] / ceiling
            results[f"{size}, {name}"] = found
            print(f"  {size}, {name}: {found['run_tokens_per_s']:,.0f} tokens/s", flush=True)

        options = {"device": device, "tokens_per_pack": pack, "repeats": repeats}
        if size == "7B":
            checkpointed = bfloat16 | {"lora_rank": 16, "gradient_checkpointing": True}
            note("LoRA, packed", measure_ours(size, whole, section=checkpointed, **options))
            checkpointed |= {"attention": "tree"}
            note("LoRA, tree", measure_ours(size, whole, section=checkpointed, **options))
            continue
        note("full, packed", measure_ours(size, whole, section=bfloat16, **options))
        note("full, tree", measure_ours(size, whole, section=tree, **options))
        exact = measure_ours(size, whole, section=bfloat16, is_deterministic=True, **options)
        note("full, packed, deterministic", exact)
        note(
            "LoRA, packed",
            measure_ours(size, whole, section=bfloat16 | {"lora_rank": 16}, **options),
        )
        if size in ("0.5B", "tiny"):
            note("full, a row per turn", measure_ours(size, by_turn, section=bfloat16, **options))
            note(
                "transformers loop, padded",
                measure_plain(size, whole, device=device, repeats=repeats),
            )
    return results


PROMPTS = {"prompt": 1200, "seen": 160, "said": 96}
