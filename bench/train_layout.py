"""The same trajectories as turns, padded, packed and as a tree: CPU seconds, tokens, memory, gradients.

    python bench/train_layout.py [--quick] [--json FILE]

One forward and backward pass of the same loss over the same trained tokens, in float32 on one thread,
with a Qwen3 of random weights (4 layers, width 256, vocabulary 4,096). Layouts:

- turns: a row for each turn with the whole prompt before it, what most trainers do; rows packed
  without padding, which is the fair form of it;
- padded: whole runs, sorted by length, padded to the longest of a batch, dense masks;
- packed: whole runs one after another, attention within each (`model.attention = "packed"`);
- tree: what runs share at their beginning is computed once (`model.attention = "tree"`).

Runs: `linear`, of eight turns that share nothing; `groups` of eight attempts at a task, which share a
prompt of 1,200 tokens (half of all tokens); `branches`, runs whose reasoning is dropped from later
prompts, as chat templates do, so that every turn branches off; and `airline`, recorded customer-service
conversations in the tokens of a real tokenizer, four attempts at a task.

CPU seconds are medians over rounds in which each layout runs once, ratios medians of the rounds'
ratios, with the least and the greatest. Peak memory is of a process of its own for each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from trainlib.measure import judge, measure_peak_mib, print_targets, spread_ratios
from trainlib.runs import make_airline, make_branches, make_groups, make_linear
from trainlib.work import build_model

from starpo_train.config import ModelSection
from starpo_train.head import compute_logprobs
from starpo_train.model import build_policy
from starpo_train.pack import pack_all
from starpo_train.policy import Policy
from starpo_train.tokens import TokenSequence, TurnTokens, build_rows

LAYOUTS = ("turns", "padded", "packed", "tree")
TOKENS_PER_PACK = 8192
VOCABULARY = 4096
ROUNDS = {"linear": 5, "groups": 5, "branches": 3, "airline": 2}
"""Of a full run, which so takes some 40 minutes; a quick one has two of each."""


def make_sets(*, quick: bool) -> dict[str, list[list[TurnTokens]]]:
    """Name -> trajectories, each a list of turns."""
    few = 6 if quick else 24
    return {
        "linear": make_linear(few, seed=0),
        "groups": make_groups(1 if quick else 2, seed=1),
        "branches": make_branches(6 if quick else 12, seed=2),
        "airline": make_airline(2, vocabulary=VOCABULARY),
    }


def build_bench_policy() -> Policy:
    return build_policy(build_model(VOCABULARY), None, ModelSection(path="bench", device="cpu"))


def lay_out(runs: list[list[TurnTokens]], layout: str) -> list[TokenSequence]:
    """Rows; every trained token is in exactly one."""
    if layout == "turns":
        return [
            row
            for n, turns in enumerate(runs)
            for turn in turns
            for row in build_rows([turn], trajectory=n)
        ]
    return [row for n, turns in enumerate(runs) for row in build_rows(turns, trajectory=n)]


def count_extra(policy: Policy, rows: list[TokenSequence]) -> int:
    """Tokens that the tree's packs compute beyond the different prefixes in each."""
    packs = pack_all(
        rows,
        range(len(rows)),
        tokens_per_pack=TOKENS_PER_PACK,
        shared_up_to=policy.shared_up_to,
    )
    return sum(
        batch.num_tokens - count_unique([rows[i] for i in chosen]) for chosen, batch in packs
    )


def run_layout(policy: Policy, rows: list[TokenSequence], layout: str) -> tuple[float, int]:
    """One pass, gradients left on the weights -> (loss, tokens computed)."""
    num_actions = sum(row.num_actions for row in rows)
    if layout == "padded":
        return _run_padded(policy, rows, num_actions)
    total, num_tokens = 0.0, 0
    shared_up_to = policy.shared_up_to if layout == "tree" else 0
    for _, batch in pack_all(
        rows, range(len(rows)), tokens_per_pack=TOKENS_PER_PACK, shared_up_to=shared_up_to
    ):
        factors_A = _weigh(batch.action_ids_A)
        loss = -(policy.score_actions(batch).logprobs_A * factors_A).sum() / num_actions
        loss.backward()
        total += float(loss.detach())
        num_tokens += batch.num_tokens
    return total, num_tokens


def _weigh(ids_A: torch.Tensor) -> torch.Tensor:
    """A factor for each token, the same in every layout, so that no gradient hides another."""
    return 0.5 + ids_A.remainder(7) / 7


def _run_padded(policy: Policy, rows: list[TokenSequence], num_actions: int) -> tuple[float, int]:
    policy.model.set_attn_implementation("sdpa")
    total, num_tokens = 0.0, 0
    try:
        for batch in _plan_padded(rows):
            ids = pad_sequence([torch.from_numpy(row.input_ids_T) for row in batch], True)
            lengths = torch.tensor([row.num_tokens for row in batch])
            mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
            trained = pad_sequence([torch.from_numpy(row.action_mask_T) for row in batch], True)
            decoder = policy.model.base_model
            hidden = decoder(input_ids=ids, attention_mask=mask.long(), use_cache=False)
            before, ids_A = trained.roll(-1, 1), ids[trained]
            head = policy.model.get_output_embeddings()
            states = hidden.last_hidden_state[before]
            logprobs_A, _ = compute_logprobs(states, head.weight, head.bias, ids_A)
            loss = -(logprobs_A * _weigh(ids_A)).sum() / num_actions
            loss.backward()
            total += float(loss.detach())
            num_tokens += ids.numel()
    finally:
        policy.model.set_attn_implementation("starpo_packed")
    return total, num_tokens


def _plan_padded(rows: list[TokenSequence]) -> list[list[TokenSequence]]:
    batches: list[list[TokenSequence]] = []
    for row in sorted(rows, key=lambda each: each.num_tokens):
        if batches and (len(batches[-1]) + 1) * row.num_tokens <= TOKENS_PER_PACK:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def time_set(runs: list[list[TurnTokens]], *, rounds: int) -> dict[str, Any]:
    """Every layout in turn, several times."""
    policy = build_bench_policy()
    rows = {layout: lay_out(runs, layout) for layout in LAYOUTS}
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    told: dict[str, Any] = {}
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    for number in range(rounds):
        for layout in LAYOUTS:
            policy.model.zero_grad()
            begun = time.process_time()
            loss, num_tokens = run_layout(policy, rows[layout], layout)
            seconds[layout].append(time.process_time() - begun)
            if number == 0:
                told[layout] = {"loss": loss, "tokens": num_tokens}
                gradients[layout] = {
                    name: p.grad.clone() for name, p in policy.trained_parameters()
                }
    for layout in LAYOUTS:
        differences = [
            float((gradients[layout][name] - gradient).abs().max())
            for name, gradient in gradients["turns"].items()
        ]
        told[layout] |= {
            "cpu_s": statistics.median(seconds[layout]),
            "speed_up_over_turns": spread_ratios(seconds["turns"], seconds[layout]),
            "speed_up_over_packed": spread_ratios(seconds["packed"], seconds[layout]),
            "max_gradient_difference": max(differences),
            "loss_difference": abs(told[layout]["loss"] - told["turns"]["loss"]),
        }
    return {
        "unique_tokens": count_unique(rows["tree"]),
        "extra_tokens": count_extra(policy, rows["tree"]),
        "rounds": rounds,
        "layouts": told,
    }


def count_unique(rows: list[TokenSequence]) -> int:
    """Different prefixes of rows, counted without the tree."""
    total, before = 0, np.empty(0, dtype=">i8")
    ids = (row.input_ids_T.astype(">i8") for row in rows)
    for row in sorted(ids, key=lambda each: each.tobytes()):
        length = min(len(row), len(before))
        differs = np.flatnonzero(row[:length] != before[:length])
        total += len(row) - (int(differs[0]) if len(differs) else length)
        before = row
    return total


def measure_peak(name: str, layout: str, *, quick: bool) -> float:
    """MiB above the loaded model, in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, layout, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(name: str, layout: str, *, quick: bool) -> None:
    runs = make_sets(quick=quick)[name]
    policy = build_bench_policy()
    rows = lay_out(runs, layout)
    for _, parameter in policy.trained_parameters():
        parameter.grad = torch.zeros_like(parameter)
    print(measure_peak_mib(lambda: run_layout(policy, rows, layout)))


def build_targets(sets: dict[str, Any]) -> list[dict[str, Any]]:
    def speed(name: str, over: str) -> float:
        return sets[name]["layouts"]["tree"][f"speed_up_over_{over}"]["median"]

    groups = sets["groups"]["layouts"]
    worst = max(
        told["max_gradient_difference"] for s in sets.values() for told in s["layouts"].values()
    )
    extra = sum(s["extra_tokens"] for s in sets.values())
    return [
        judge("tokens beyond the unique ones of a pack", extra, 0, at_least=False),
        judge("largest gradient difference", worst, 1e-5, at_least=False),
        judge("linear: tree over turns", speed("linear", "turns"), 4.5, at_least=True),
        judge("groups: tree over turns", speed("groups", "turns"), 8.0, at_least=True),
        judge("groups: tree over packed", speed("groups", "packed"), 1.35, at_least=True),
        judge("linear: tree over packed", speed("linear", "packed"), 0.95, at_least=True),
        judge(
            "groups: peak memory, tree / packed",
            groups["tree"]["peak_mib"] / groups["packed"]["peak_mib"],
            1.0,
            at_least=False,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few runs, two rounds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print_peak(*options.peak, quick=options.quick)
        return
    sets = {}
    for name, runs in make_sets(quick=options.quick).items():
        if not runs:
            print(f"{name}: left out, its recorded runs are not in ../shared/data")
            continue
        sets[name] = time_set(runs, rounds=2 if options.quick else ROUNDS[name])
        print(f"{name}: {sets[name]['unique_tokens']:,} unique tokens")
        for layout, told in sets[name]["layouts"].items():
            told["peak_mib"] = measure_peak(name, layout, quick=options.quick)
            over = told["speed_up_over_turns"]
            print(
                f"  {layout:7} {told['tokens']:9,} tokens {told['cpu_s']:7.2f} s  "
                f"{over['median']:5.2f}x turns [{over['least']:.2f}, {over['greatest']:.2f}]  "
                f"{told['speed_up_over_packed']['median']:5.2f}x packed  {told['peak_mib']:6.0f} MiB  "
                f"gradients within {told['max_gradient_difference']:.1e}"
            )
    targets = build_targets(sets)
    print_targets(targets)
    if options.json:
        told = {
            "torch": torch.__version__,
            "quick": options.quick,
            "sets": sets,
            "targets": targets,
        }
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
