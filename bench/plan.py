"""A model's shape -> ranks, memory of each and time of a step: a plan on paper, tested on what was run.

    python bench/plan.py [--size 8B | --config MODEL/config.json] [--json FILE]

Nothing is run here. Memory is counted: what autograd keeps of a decoder layer under autocast, and
what FSDP2 holds of the weights. Time is counted too: products at the ceiling that `bench/gpu`
measured, other kernels at the memory's bandwidth, and a time per layer and pass for launching them,
which is fitted to the 0.5B runs of `results/gpu_h200.json`. The 1.5B and 7B runs there are then a
test of the formulas, printed first. What passes between ranks is an assumption, as no run measured it.

Units: bytes, seconds, tokens; T tokens of a pass.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "gpu_h200.json"
GB = 1e9
BANDWIDTH = 4.8e12
"""Of an H200's memory, from its data sheet."""
TRAFFIC = 5
"""A kept byte is written, read, read again going back, and so is its gradient."""
LINKS = {8: 300e9, 1 << 30: 45e9}
"""Assumed: bytes a second that a rank gathers, up to so many ranks: NVLink, 400 Gbit/s for each."""
MARGIN = 1.15
"""For NCCL, fragments and what the formulas leave out: they said up to 8 % too little."""
SHARES = {False: ("1.5B, full, packed", 0.75), True: ("7B, LoRA, packed", 1.0)}
"""Run whose measured share of the ceiling a large model is planned with, and what recomputing
activations leaves of it; the second did so when it was measured."""
CHUNK = 2**28 * 4
"""Logits that the head holds at once, in float32."""
CARDS = {"80 GB": 80 * GB, "141 GB": 141 * GB}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder of the Llama family."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv: int
    vocab: int
    head_dim: int = 0
    """0: hidden / heads."""
    tied: bool = True

    @property
    def query(self) -> int:
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def keys(self) -> int:
        return self.kv * (self.head_dim or self.hidden // self.heads)

    @property
    def layer_weights(self) -> int:
        return 2 * self.hidden * (self.query + self.keys) + 3 * self.hidden * self.ffn

    @property
    def outer_weights(self) -> int:
        """Embedding and head."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        return self.layers * self.layer_weights + self.outer_weights


SIZES = {
    "0.5B": Shape(hidden=896, ffn=4864, layers=24, heads=14, kv=2, vocab=151_936),
    "1.5B": Shape(hidden=1536, ffn=8960, layers=28, heads=12, kv=2, vocab=151_936),
    "7B": Shape(hidden=3584, ffn=18944, layers=28, heads=28, kv=4, vocab=152_064, tied=False),
    "8B": Shape(
        hidden=4096,
        ffn=12288,
        layers=36,
        heads=32,
        kv=8,
        head_dim=128,
        vocab=151_936,
        tied=False,
    ),
    "32B": Shape(
        hidden=5120,
        ffn=25600,
        layers=64,
        heads=64,
        kv=8,
        head_dim=128,
        vocab=151_936,
        tied=False,
    ),
}
"""Qwen2.5's first three, then Qwen3's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one rank does in a step."""

    tokens: int
    longest_pass: int
    """Tokens of its largest pack."""
    passes: int
    actions: int
    row: int
    """Tokens of a row."""
    is_lora: bool = False
    is_checkpointed: bool = False


BENCH = Work(tokens=8 * 3088, longest_pass=5 * 3088, passes=2, actions=8 * 768, row=3088)
"""`bench/gpu`: eight attempts of eight turns, in packs of at most 16,384 tokens."""
RUNS = {
    "0.5B, full, packed": (False, False),
    "0.5B, LoRA, packed": (True, False),
    "1.5B, full, packed": (False, False),
    "1.5B, LoRA, packed": (True, False),
    "7B, LoRA, packed": (True, True),
}
"""Which of them are LoRA and recompute activations."""
FITTED = {False: "0.5B, full, packed", True: "0.5B, LoRA, packed"}


def count_kept(shape: Shape) -> float:
    """Bytes per token that autograd keeps of a layer under bfloat16 autocast.

    The inputs of both norms in float32; in bfloat16 one copy of a norm's output for each product
    that takes it, queries, keys, values, what attention gives and its packed copy; gate, up, the
    gate's SiLU and their product; the log-sum-exps.
    """
    norms, copies = 2 * 4 * shape.hidden, 5 * 2 * shape.hidden
    attention = 2 * (3 * shape.query + 2 * shape.keys) + 4 * shape.heads
    return norms + copies + attention + 4 * 2 * shape.ffn


def count_flops(shape: Shape, work: Work) -> float:
    """As 6 N tokens and attention: 2 for a multiply-add, back twice as much as forth, once for LoRA."""
    products = 2.0 * shape.layers * shape.layer_weights * work.tokens
    products += 2.0 * shape.hidden * shape.vocab * work.actions
    attention = 2.0 * shape.layers * shape.query * work.tokens * work.row
    return products * (2 if work.is_lora else 3) + attention * 3


def plan_memory(shape: Shape, work: Work, *, ranks: int) -> dict[str, float]:
    """Bytes of one rank by what they hold; of one rank alone, as it runs without sharding."""
    trained = 0 if work.is_lora else shape.weights  # the adapters themselves are little
    held = {
        "weights": (2 if work.is_lora else 4) * shape.layers * shape.layer_weights / ranks
        + 4 * shape.outer_weights / ranks,
        "moments": 8 * trained / ranks,
        "gradients": 4 * trained / ranks,
    }
    kept = count_kept(shape) * work.longest_pass
    if work.is_checkpointed:
        # one layer's beside the head's, though one is gone when the other comes
        held["activations"] = 4 * shape.hidden * shape.layers * work.longest_pass + kept
    else:
        held["activations"] = shape.layers * kept
    low_head = 2 * shape.vocab * shape.hidden
    # logits, their log-softmax and one more, or what is left of them going back
    held["head"] = 3 * CHUNK + low_head + (0 if work.is_lora else 2 * low_head)
    if ranks == 1:
        # autocast's copies; of LoRA's frozen weights there is but the one in bfloat16
        held["gathered"] = 0 if work.is_lora else 2.0 * shape.layers * shape.layer_weights
    else:
        # two layers in bfloat16, the gradient of one in bfloat16 and, being summed, in float32
        layer = 2 * 2 + (0 if work.is_lora else 2 + 4)
        outer = 4 if work.is_lora else 8
        held["gathered"] = layer * shape.layer_weights + outer * shape.outer_weights
    return held


def plan_time(
    shape: Shape, work: Work, *, ceiling: float, head_beyond: float, launch: float, ranks: int = 1
) -> dict[str, float]:
    """Seconds of a step by what they go to; what ranks gather is hidden as far as it can be."""
    recomputed = 0.0
    if work.is_checkpointed:
        recomputed = (
            2.0 * shape.layers * work.tokens * (shape.layer_weights + shape.query * work.row)
        )
    # the head's products are done once more going back
    again = 2.0 * shape.hidden * shape.vocab * work.actions
    rounds = 1.5 if work.is_checkpointed else 1.0
    spent = {
        "products": (count_flops(shape, work) + recomputed + again) / ceiling,
        "other kernels": rounds
        * TRAFFIC
        * count_kept(shape)
        * shape.layers
        * work.tokens
        / BANDWIDTH,
        "head beyond products": head_beyond * work.actions * shape.vocab,
        "optimizer": (0 if work.is_lora else 36) * shape.weights / ranks / BANDWIDTH,
        "launching": rounds * launch * shape.layers * work.passes,
    }
    if ranks > 1:
        share = (ranks - 1) / ranks
        # a layer in bfloat16 forth and back, its gradient in float32; what is outside in float32
        moved = shape.layers * shape.layer_weights * (4 if work.is_lora else 8)
        moved += shape.outer_weights * (4 if work.is_lora else 8)
        link = next(speed for up_to, speed in LINKS.items() if ranks <= up_to)
        gathered = work.passes * share * moved / link
        spent["waiting for other ranks"] = max(0.0, gathered - sum(spent.values()))
    return spent


def read_ceilings(results: dict[str, Any]) -> dict[str, float]:
    """What the runs say about the card: products, and the head beyond its products."""
    heads = results["heads"]
    pairs = heads["actions"] * heads["vocabulary"]
    ceiling = results["matmul_ceiling_flops"]
    beyond = heads["heads"]["starpo_train"]["median_s"] - 8 * pairs * heads["hidden"] / ceiling
    return {"ceiling": ceiling, "head_beyond": beyond / pairs}


def fit_launches(results: dict[str, Any]) -> dict[bool, float]:
    """Seconds per layer and pass that the 0.5B runs took beyond what their kernels should."""
    ceilings = read_ceilings(results)
    launches = {}
    for is_lora, name in FITTED.items():
        work = Work(**asdict(BENCH) | {"is_lora": is_lora})
        known = sum(plan_time(SIZES["0.5B"], work, launch=0.0, **ceilings).values())
        beyond = results["steps"][name]["median_s"] - known
        launches[is_lora] = beyond / (SIZES["0.5B"].layers * work.passes)
    return launches


def check_formulas(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Each measured run beside what the formulas say of it; `peak_mib` left out what lasts."""
    rows = []
    launches = fit_launches(results)
    for name, (is_lora, is_checkpointed) in RUNS.items():
        shape, measured = SIZES[name.split(",")[0]], results["steps"][name]
        work = Work(**asdict(BENCH) | {"is_lora": is_lora, "is_checkpointed": is_checkpointed})
        held = plan_memory(shape, work, ranks=1)
        # the largest pack is the first: no weight has a gradient yet when most is kept
        peak = held["activations"] + held["head"] + held["gathered"]
        ceilings = read_ceilings(results)
        seconds = sum(plan_time(shape, work, launch=launches[is_lora], **ceilings).values())
        rows.append(
            {
                "run": name,
                "peak_gb": peak / GB,
                "measured_peak_gb": measured["peak_mib"] * 2**20 / GB,
                "step_s": seconds,
                "measured_step_s": measured["median_s"],
                "is_time_fitted": name in FITTED.values(),
                "flops": count_flops(shape, work),
                "measured_flops": measured["flops"],
            }
        )
    return rows


def plan_ranks(shape: Shape, results: dict[str, Any], args: Any) -> list[dict[str, Any]]:
    """Full training and LoRA on 1 to 64 ranks, activations recomputed."""
    launches, rows = fit_launches(results), []
    ceiling = results["matmul_ceiling_flops"]
    for is_lora in (False, True):
        run, left = SHARES[is_lora]
        measured_share = results["steps"][run]["share_of_ceiling"] * left
        for ranks in (1, 2, 4, 8, 16, 32, 64):
            tokens = args.step_tokens // ranks
            work = Work(
                tokens=tokens,
                longest_pass=args.tokens_per_pack,
                passes=max(1, -(-tokens // args.tokens_per_pack)),
                actions=int(tokens * args.trained_share),
                row=args.row,
                is_lora=is_lora,
                is_checkpointed=True,
            )
            held = plan_memory(shape, work, ranks=ranks)
            total = sum(held.values())
            spent = plan_time(
                shape, work, launch=launches[is_lora], ranks=ranks, **read_ceilings(results)
            )
            seconds = sum(spent.values())
            rows.append(
                {
                    "what": "LoRA" if is_lora else "full",
                    "ranks": ranks,
                    "held_gb": {name: value / GB for name, value in held.items()},
                    "total_gb": total / GB,
                    "fits": [n for n, size in CARDS.items() if total * MARGIN <= size],
                    "step_s": seconds,
                    "spent_s": spent,
                    "tokens_per_s": args.step_tokens / seconds,
                    "share_of_ceiling": count_flops(shape, work) / seconds / ceiling,
                    "tokens_per_s_at_measured_share": args.step_tokens
                    * measured_share
                    * ceiling
                    / count_flops(shape, work),
                }
            )
    return rows


def read_shape(path: Path) -> Shape:
    """A model's config.json."""
    config = json.loads(path.read_text())
    return Shape(
        hidden=config["hidden_size"],
        ffn=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv=config.get("num_key_value_heads", config["num_attention_heads"]),
        head_dim=config.get("head_dim") or 0,
        vocab=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
    )


def print_check(rows: list[dict[str, Any]]) -> None:
    print("Predicted / measured on one H200 (bench/results/gpu_h200.json):")
    print(f"{'run':<20} {'peak GB':>16} {'off':>6} {'step s':>16} {'off':>6} {'TFLOP':>12}")
    for row in rows:
        peak, seconds = (
            f"{row[key]:.3g} / {row[f'measured_{key}']:.3g}" for key in ("peak_gb", "step_s")
        )
        flops = f"{row['flops'] / 1e12:.0f} / {row['measured_flops'] / 1e12:.0f}"
        off = f"{row['step_s'] / row['measured_step_s'] - 1:+.0%}"
        print(
            f"{row['run']:<20} {peak:>16} {row['peak_gb'] / row['measured_peak_gb'] - 1:>+6.0%} "
            f"{seconds:>16} {'fitted' if row['is_time_fitted'] else off:>6} {flops:>12}"
        )


def print_plan(title: str, shape: Shape, rows: list[dict[str, Any]], args: Any) -> None:
    print(
        f"\n{title}: {shape.weights / 1e9:.2f}B weights, recomputing activations, steps of "
        f"{args.step_tokens:,} tokens, packs of {args.tokens_per_pack:,}, rows of {args.row:,}, "
        f"{args.trained_share:.0%} trained; GB of each rank (not measured):"
    )
    parts = list(rows[0]["held_gb"])
    print(f"{'':<5} {'ranks':>5} " + " ".join(f"{part:>11}" for part in parts), end="")
    print(f" {'total':>7} {'fits (+15 %)':>15} {'tokens/s: counted':>17} {'at measured share':>17}")
    for row in rows:
        cells = " ".join(f"{row['held_gb'][part]:>11.1f}" for part in parts)
        print(f"{row['what']:<5} {row['ranks']:>5} {cells} {row['total_gb']:>7.1f}", end="")
        print(f" {', '.join(row['fits']) or 'none':>15} {row['tokens_per_s']:>17,.0f}", end="")
        print(f" {row['tokens_per_s_at_measured_share']:>17,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="A plan on paper, tested on what was run.")
    parser.add_argument("--size", choices=SIZES, default="8B")
    parser.add_argument("--config", type=Path, help="config.json of another model")
    parser.add_argument("--step-tokens", type=int, default=524_288, help="computed in a step")
    parser.add_argument("--tokens-per-pack", type=int, default=16_384)
    parser.add_argument("--row", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--trained-share", type=float, default=0.25)
    parser.add_argument("--json", type=Path, help="write it here")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text())
    shape = read_shape(args.config) if args.config else SIZES[args.size]
    check, plan = check_formulas(results), plan_ranks(shape, results, args)
    print_check(check)
    print_plan(str(args.config or args.size), shape, plan, args)
    if args.json:
        options = {key: str(value) for key, value in vars(args).items() if key != "json"}
        record = {"bench": "plan", "options": options, "check": check, "plan": plan}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
