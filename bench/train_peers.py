"""One training step of Starpo beside TRL 1.16 and a plain loop: CPU seconds, memory, equal gradients.

    python bench/train_peers.py [--quick] [--json FILE] [--only NAMES] [--cache DIR]

Everything runs in one environment (`bench/trainlib/trl.txt`, made at the first run), in float32 on one
thread, without gradient checkpointing, with a Qwen3 of random weights (4 layers, width 256). A step is
the collation of a batch, its forward and backward passes, clipping and AdamW. Batches:

- flat: runs of eight turns that share nothing, each one row; vocabulary 4,096;
- wide: shorter runs; vocabulary 151,936;
- groups: eight attempts after one prompt of 1,200 tokens; vocabulary 4,096.

All train the same tokens. Starpo's own loss stands beside TRL's GRPOTrainer (`_compute_loss` on recorded
log-probabilities, loss type grpo, beta 0) and a plain padded loop; its filtered BC beside TRL's SFTTrainer,
padding-free and packing. Largest gradient differences are told: it is the same work. What is not the same:
without Triton, TRL scores every position and not only the trained ones; it also counts right guesses. Both
compute entropies; the plain loop does not.

The head alone, 2,048 tokens of width 256 to a vocabulary of 151,936: Starpo's, log_softmax of all
logits, TRL's two, Liger's, and in full runs PyTorch's own, which takes minutes.

CPU seconds are medians over rounds in which each runs once, ratios medians of the rounds' ratios. Peak
memory is of a process of its own, over the loaded model with its gradients and moments.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from peers.environments import DEFAULT_CACHE, prepare_environment

BENCH = Path(__file__).parent
PINS = BENCH / "trainlib"
LEAST_SPEED_UP, HEAD_MEMORY, HEAD_TIME = 2.5, 0.09, 1.0


def measure_batch(name: str, *, quick: bool) -> dict[str, Any]:
    """Every contender in turn, several times."""
    from trainlib.contenders import CONTENDERS
    from trainlib.measure import spread_ratios
    from trainlib.work import make_work

    work = make_work(name, quick=quick)
    chosen = {key: c for key, c in CONTENDERS.items() if not c.only or name in c.only}
    steps = {key: contender.build(work) for key, contender in chosen.items()}
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    updates: dict[str, list[float]] = {key: [] for key in steps}
    told: dict[str, Any] = {}
    gradients: dict[str, Any] = {}
    for number in range(count_rounds(name, quick=quick)):
        for key, step in steps.items():
            begun = time.process_time()
            loss = step.compute()
            computed = time.process_time() - begun
            if number == 0:
                told[key] = {"title": chosen[key].title, "loss": loss}
                gradients[key] = {n: p.grad.clone() for n, p in step.model.named_parameters()}
            begun = time.process_time()
            step.update()
            updates[key].append(time.process_time() - begun)
            seconds[key].append(computed + updates[key][-1])
    for key, contender in chosen.items():
        ours = "ours" if contender.loss == "starpo" else "ours-bc"
        told[key] |= {
            "cpu_s": statistics.median(seconds[key]),
            "update_cpu_s": statistics.median(updates[key]),
            "tokens_per_cpu_s": work.num_tokens / statistics.median(seconds[key]),
            "ours_is_faster_by": spread_ratios(seconds[key], seconds[ours]),
            "max_gradient_difference": max(
                float((gradients[key][n] - gradient).abs().max())
                for n, gradient in gradients[ours].items()
            ),
            "peak_mib": measure_peak("--peak", name, key, quick=quick),
        }
    return {
        "tokens": work.num_tokens,
        "trained_tokens": work.num_actions,
        "runs": len(work.rows),
        "rounds": len(seconds["ours"]),
        "contenders": told,
    }


def count_rounds(name: str, *, quick: bool) -> int:
    if quick:
        return 2 if name == "flat" else 1
    return 5 if name == "flat" else 4


def measure_heads(*, quick: bool) -> dict[str, Any]:
    from trainlib.heads import HEADS, make_inputs
    from trainlib.measure import spread_ratios

    inputs = make_inputs()
    seconds: dict[str, list[float]] = {}
    told: dict[str, Any] = {}
    expected: list[Any] = []
    for number in range(1 if quick else 4):
        for key, head in HEADS.items():
            if head.is_slow and (quick or number > 0):
                continue
            begun = time.process_time()
            loss = head.compute_loss(*inputs)
            loss.backward()
            seconds.setdefault(key, []).append(time.process_time() - begun)
            if number == 0:
                found = [inputs[0].grad, inputs[1].grad]
                expected = expected or found
                told[key] = {
                    "title": head.title,
                    "loss": float(loss.detach()),
                    "max_gradient_difference": max(
                        float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)
                    ),
                }
            del loss
            inputs[0].grad = inputs[1].grad = None
    for key, each in told.items():
        count = len(seconds[key])
        each |= {
            "cpu_s": statistics.median(seconds[key]),
            "ours_is_faster_by": spread_ratios(seconds[key], seconds["ours"][:count]),
            "peak_mib": measure_peak("--peak-head", key, quick=quick),
        }
    return told


def measure_peak(*arguments: str, quick: bool) -> float:
    command = [sys.executable, __file__, *arguments, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def print_peak(name: str, key: str, *, quick: bool) -> None:
    import torch
    from trainlib.contenders import CONTENDERS
    from trainlib.measure import measure_peak_mib
    from trainlib.work import make_work

    step = CONTENDERS[key].build(make_work(name, quick=quick))
    for parameter in step.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step.update()  # makes the moments
    for parameter in step.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    print(measure_peak_mib(lambda: (step.compute(), step.update())))


def print_head_peak(key: str) -> None:
    from trainlib.heads import HEADS, make_inputs
    from trainlib.measure import measure_peak_mib

    inputs = make_inputs()
    if key.startswith(("trl", "liger")):  # imports what is needed
        HEADS[key].compute_loss(inputs[0][:128], inputs[1][:100], inputs[2][:128] % 100)
    print(measure_peak_mib(lambda: HEADS[key].compute_loss(*inputs).backward()))


def build_targets(sets: dict[str, Any], heads: dict[str, Any]) -> list[dict[str, Any]]:
    from trainlib.measure import judge

    targets = []
    for name, told in sets.items():
        found = told["contenders"]
        bound = LEAST_SPEED_UP
        if name == "groups":
            bound *= found["ours-packed"]["ours_is_faster_by"]["median"]
        for ours, peer in (("ours", "trl-grpo"), ("ours-bc", "trl-sft")):
            title = found[peer]["title"]
            ratio = found[peer]["ours_is_faster_by"]["median"]
            memory = found[ours]["peak_mib"] / found[peer]["peak_mib"]
            targets += [
                judge(f"{name}: speed over {title}", ratio, bound, at_least=True),
                judge(f"{name}: peak memory / {title}", memory, 1.0, at_least=False),
            ]
        worst = max(each["max_gradient_difference"] for each in found.values())
        targets.append(judge(f"{name}: gradient difference", worst, 1e-6, at_least=False))
    if not heads:
        return targets
    full, ours = heads["full"], heads["ours"]
    memory, time_ratio = ours["peak_mib"] / full["peak_mib"], full["ours_is_faster_by"]["median"]
    return [
        *targets,
        judge("head: peak memory / log_softmax", memory, HEAD_MEMORY, at_least=False),
        judge("head: time / log_softmax", 1 / time_ratio, HEAD_TIME, at_least=False),
    ]


def print_table(told: dict[str, Any]) -> None:
    for each in told.values():
        ratio = each["ours_is_faster_by"]
        rate = each.get("tokens_per_cpu_s")
        print(
            f"  {each['title']:40} {each['cpu_s']:7.2f} s  "
            f"{f'{rate:7,.0f} tokens/s' if rate else ''}  {ratio['median']:5.2f}x ours "
            f"[{ratio['least']:.2f}, {ratio['greatest']:.2f}]  {each['peak_mib']:6.0f} MiB  "
            f"gradients within {each['max_gradient_difference']:.1e}",
            flush=True,
        )


def run_inside(options: argparse.Namespace) -> None:
    """What runs in the environment with TRL."""
    import torch
    import transformers
    import trl
    from trainlib.measure import print_targets
    from trainlib.work import NAMES

    sets = {}
    for name in (name for name in NAMES if name in options.only.split(",")):
        sets[name] = measure_batch(name, quick=options.quick)
        print(f"{name}: {sets[name]['tokens']:,} tokens, {sets[name]['trained_tokens']:,} trained")
        print_table(sets[name]["contenders"])
    heads = {}
    if "heads" in options.only.split(","):
        heads = measure_heads(quick=options.quick)
        print("head alone, 2,048 tokens, vocabulary 151,936")
        print_table(heads)
    targets = build_targets(sets, heads)
    print_targets(targets)
    if options.json:
        told = {
            "versions": {each.__name__: each.__version__ for each in (torch, transformers, trl)},
            "quick": options.quick,
            "sets": sets,
            "heads": heads,
            "targets": targets,
        }
        options.json.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer runs and rounds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", default="flat,wide,groups,heads", help="what to run, of these")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="environments' folder")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--peak-head", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.inside or options.peak or options.peak_head):
        python = prepare_environment("trl", options.cache, pins=PINS)
        variables = {
            **os.environ,
            "PYTHONPATH": f"{BENCH}{os.pathsep}{BENCH.parent}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [str(python), __file__, "--inside", *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, env=variables, check=False).returncode)
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.peak:
        print_peak(*options.peak, quick=options.quick)
    elif options.peak_head:
        print_head_peak(options.peak_head)
    else:
        run_inside(options)


if __name__ == "__main__":
    main()
