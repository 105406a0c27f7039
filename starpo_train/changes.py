"""A checkpoint's configuration + that of its run now -> what was edited, and whether it may be.

What decides what the steps learn belongs to a run, so a key that is not named here may not change.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from starpo_train.checkpoint import Checkpoint
from starpo_train.config import RunConfig
from starpo_train.errors import ConfigError
from starpo_train.tomlfile import to_json_dict

Changes = Mapping[str, Sequence[Any]]
"""`section.key` -> its value in the checkpoint, and now."""

MAY_CHANGE: Final = frozenset(
    {
        "run.name",
        "run.trackers",
        "data.dataset",  # where it is; its digest says that it is the same one
        "model.attention",
        "model.device",
        "model.precision",
        "model.gradient_checkpointing",
        "train.epochs",
        "train.tokens_per_pack",
        "train.checkpoint_every_steps",
        "train.keep_checkpoints",
        "train.threads",
        "train.rank_timeout_s",
    }
)
"""Keys that an interrupted run may go on with otherwise."""

_PATHS: Final = ("data.dataset", "data.behaviour", "model.path")


def find_changes(checkpoint: Checkpoint, config: RunConfig) -> Changes:
    """What of a run's configuration differs from the one that its checkpoint was trained with.

    A key that the checkpoint's release did not have is compared with its default.
    """
    changes: dict[str, tuple[Any, Any]] = {}
    now = to_json_dict(config)
    for section in dataclasses.fields(config):
        saved = checkpoint.lineage["config"].get(section.name, {})
        for option in dataclasses.fields(getattr(config, section.name)):
            key = f"{section.name}.{option.name.rstrip('_')}"
            before = saved.get(option.name, _default(option))
            after = now[section.name][option.name]
            if key == "run.output" or before == after:
                continue
            if key in _PATHS and _is_same_place(before, after, checkpoint, config.run.output):
                continue
            changes[key] = (before, after)
    return changes


def require_same_run(
    changes: Changes, checkpoint: Checkpoint, config: RunConfig, *, result: Path | None
) -> None:
    """Refuse changes that would make it another run; `result`: what a new one may begin with.

    Raises:
        ConfigError: names each of them, before and now.
    """
    refused = {key: change for key, change in changes.items() if key not in MAY_CHANGE}
    if not refused:
        return
    moved = ""
    if "model.path" in refused:
        moved = " A model that was only moved: put a link to it where it was."
    raise ConfigError(
        f"{config.run.output / 'run.toml'} was edited since {checkpoint.path.name}: "
        f"{describe_changes(refused)}. That would be another run: put the old values back, or "
        f"start a new one with its own run.output; model.path = {str(result or checkpoint.path)!r} "
        f"there begins with the weights reached here.{moved}"
    )


def describe_changes(changes: Changes) -> str:
    """`train.epochs 3 -> 5, run.name absent -> "shop"`."""
    return ", ".join(
        f"{key} {_describe(before)} -> {_describe(after)}"
        for key, (before, after) in changes.items()
    )


def _default(option: "dataclasses.Field[Any]") -> Any:
    if option.default is dataclasses.MISSING:
        return None
    return json.loads(json.dumps(option.default, default=str))


def _is_same_place(before: Any, after: Any, checkpoint: Checkpoint, output: Path) -> bool:
    """The same folder by another name: a link, a relative hub name, a pinned dataset version."""
    digest = checkpoint.lineage["dataset"]["digest"]
    return str(before) == f"{after}@{digest}" or (output / str(before)).resolve() == Path(after)


def _describe(value: Any) -> str:
    return "absent" if value is None else json.dumps(value, ensure_ascii=False)
