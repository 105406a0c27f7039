"""Lineage of a checkpoint -> its README.md, whose YAML front matter model hubs read."""

from pathlib import Path
from typing import Any

import orjson

CARD_FILE = "README.md"


def render_card(
    *, lineage: dict[str, Any], facts: dict[str, Any], last_step: dict[str, Any], base: Path | None
) -> str:
    """The card of a checkpoint; `base` is the folder of the model that training began from."""
    from huggingface_hub import ModelCardData

    config = lineage["config"]
    licence = read_licence(base)
    name = config["run"]["name"] or Path(config["run"]["output"]).name
    is_hub_name = not Path(lineage["base_model"]).is_absolute()
    front = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["starpo", "agent", facts["algorithm"]],
        base_model=lineage["base_model"] if is_hub_name else None,
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )
    terms = licence.get("license_name") or licence.get("license")
    sections = {
        "Lineage": {
            "Base model": lineage["base_model"],
            "Dataset": f"{lineage['dataset']['path']}, digest {lineage['dataset']['digest']}",
            "Dataset's tables": ", ".join(
                f"{table} {version}" for table, version in lineage["dataset"]["versions"].items()
            ),
            "Algorithm": f"{facts['algorithm']}: {facts['algorithm_reason']}",
            "Log-probabilities": (
                f"estimated by {config['data']['behaviour']}: no evidence of the policy's own"
                if facts.get("estimated")
                else "as recorded, or none"
            ),
            "Trained weights": _describe_training(config),
            "Code": f"starpo {lineage['starpo_version']}",
            "Licence": f"{terms}, the base model's" if terms else "unknown; the base model's holds",
        },
        "Data": {
            key: facts[key]
            for key in (
                "num_trajectories",
                "num_trajectories_read",
                "num_rows",
                "num_tokens",
                "num_action_tokens",
                "reward_mean",
                "left_out",
            )
            if facts.get(key) not in (None, {})
        },
        "Metrics of the last step": {
            key: value for key, value in last_step.items() if key in _METRICS
        },
    }
    tables = "\n".join(_render_section(title, rows) for title, rows in sections.items())
    return f"---\n{front.to_yaml()}\n---\n\n# {name}\n\n{_USAGE}\n{tables}"


def read_licence(base: Path | None) -> dict[str, str]:
    """Licence of a model folder, from the front matter of its card; empty when it says nothing."""
    from huggingface_hub.repocard import metadata_load

    card = base / CARD_FILE if base is not None else None
    if card is None or not card.is_file():
        return {}
    try:
        front = metadata_load(card) or {}
    except Exception:  # noqa: BLE001 - a card is free text, and no reason to lose a checkpoint
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: front[key] for key in keys if isinstance(front.get(key), str)}


_METRICS = [
    "step",
    "epoch",
    "loss",
    "entropy",
    "grad_norm",
    "approx_kl",
    "clip_fraction",
    "ess_fraction",
    "learning_rate",
]

_USAGE = """\
Fine-tuned by [Starpo](https://pypi.org/project/starpo/) on recorded runs of an agent.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto")
```

```
vllm serve THIS_FOLDER
```
"""


def _describe_training(config: dict[str, Any]) -> str:
    rank = config["model"]["lora_rank"]
    return f"LoRA of rank {rank}, merged" if rank else "all"


def _render_section(title: str, rows: dict[str, Any]) -> str:
    lines = [f"\n## {title}\n", "| | |", "|---|---|"]
    lines += [f"| {_render_cell(key)} | {_render_cell(value)} |" for key, value in rows.items()]
    return "\n".join(lines) + "\n"


def _render_cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else value
    text = orjson.dumps(text).decode() if isinstance(text, dict | list) else str(text)
    return " ".join(text.replace("|", "\\|").split())
