"""What a GPU must prove, in one call: heads, attention, whole steps, against simpler ways.

    python bench/gpu [--quick] [--json FILE] [--device cuda|cpu] [--sizes 0.5B,1.5B,7B]

Needs torch, transformers and, for LoRA, peft; no data library and no network: weights and tokens
are random. On a CPU (`--device cpu`) everything runs with tiny shapes, to see that it does; those
numbers mean nothing.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from attentions import measure_attentions, measure_trees
from clock import measure_matmul_ceiling
from heads import measure_heads
from steps import measure_steps


def judge(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Targets that these results can speak to."""
    steps, heads = results["steps"], results["heads"]["heads"]
    targets = []

    def add(name: str, value: float | None, target: str, *, met: bool | None) -> None:
        targets.append({"name": name, "value": value, "target": target, "met": met})

    full = steps.get("1.5B, full, packed")
    if full:
        share = round(full["share_of_ceiling"], 3)
        add("1.5B full, bf16: share of the matmul ceiling", share, ">= 0.45", met=share >= 0.45)
    packed, by_turn = steps.get("0.5B, full, packed"), steps.get("0.5B, full, a row per turn")
    if packed and by_turn:
        ratio = round(by_turn["median_s"] / packed["median_s"], 2)
        add("0.5B: packed runs over a row per turn, wall", ratio, ">= 3", met=ratio >= 3)
    tree = steps.get("0.5B, full, tree")
    if tree and by_turn:
        ratio = round(by_turn["median_s"] / tree["median_s"], 2)
        add("0.5B: tree over a row per turn, wall", ratio, ">= 3", met=ratio >= 3)
    ours, plain = heads["starpo_train"], heads["full log-softmax"]
    if ours["peak_mib"] is not None:
        ratio = round(ours["peak_mib"] / plain["peak_mib"], 3)
        add("head: peak memory over full log-softmax's", ratio, "<= 0.5", met=ratio <= 0.5)
        ratio = round(ours["median_s"] / plain["median_s"], 3)
        add("head: time over full log-softmax's", ratio, "<= 1.25", met=ratio <= 1.25)
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description="What a GPU must prove.")
    parser.add_argument("--quick", action="store_true", help="the smaller models only")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", help="models, of 0.5B, 1.5B, 7B")
    args = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products need
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --device cpu runs everything with tiny shapes")
    is_tiny = args.device == "cpu"
    sizes = ["tiny"] if is_tiny else (args.sizes or "0.5B,1.5B,7B").split(",")
    if args.quick and not is_tiny and not args.sizes:
        sizes = ["0.5B"]
    ceiling = measure_matmul_ceiling(device=args.device)
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}: {ceiling / 1e12:.1f} TFLOP/s", flush=True)
    results: dict[str, Any] = {
        "bench": "gpu",
        "device": name,
        "is_tiny": is_tiny,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "matmul_ceiling_flops": ceiling,
        "heads": measure_heads(device=args.device, is_tiny=is_tiny),
        "attentions": measure_attentions(device=args.device, is_tiny=is_tiny),
        "trees": measure_trees(device=args.device, is_tiny=is_tiny),
        "steps": {},
    }
    results["steps"] = measure_steps(
        device=args.device, is_tiny=is_tiny, sizes=sizes, ceiling=ceiling
    )
    results["targets"] = judge(results)
    print(json.dumps(results, indent=1))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
