"""Dataset -> one file, in the form that was asked for."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from starpo_trace.convert.writers.atif import write_atif
from starpo_trace.convert.writers.chatlines import write_chat_lines
from starpo_trace.convert.writers.command import FORMS
from starpo_trace.convert.writers.otlplines import write_otlp
from starpo_trace.convert.writers.pairs import PairRule, write_pairs, write_unpaired
from starpo_trace.convert.writers.report import Selection, Tally, WriteReport, select_trajectories
from starpo_trace.convert.writers.stream import (
    TrajectoryRows,
    count_trajectories,
    iterate_trajectories,
)
from starpo_trace.convert.writers.verl import write_verl_prompts, write_verl_sft
from starpo_trace.convert.writers.wholefile import open_spool, replace_whole
from starpo_trace.errors import ConfigError

_UNITS: Final = {
    "trl-pairs": "pairs",
    "trl-kto": "examples",
    "verl": "prompts",
    "atif": "documents",
    "otlp": "traces",
}
_ALL_TABLES: Final = ("turns", "messages", "states", "rewards")
_HOLDS_EVERYTHING: Final = frozenset({"atif", "otlp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """What to write of a dataset."""

    split: str | None = None
    """Only `train`, `validation` or `test`; `all`. None: `train` for trainers, all elsewhere."""
    min_reward: float | None = None
    """Only trajectories with at least this reward."""
    min_gap: float = 0.0
    """`trl-pairs`: least difference of the two rewards."""
    pairs_per_task: int = 4
    """`trl-pairs`: most pairs of one task."""
    desirable_from: float | None = None
    """`trl-kto`: the reward from which on a run is labelled as desirable."""
    data_source: str = "starpo"
    """`verl`: what its reward function is chosen by."""
    history: Literal["delta", "full"] = "delta"
    """`otlp`: whether each call holds only what is new of its prompt."""


def write_dataset(
    dataset: Path,
    output: Path,
    *,
    form: str,
    options: WriteOptions | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> WriteReport:
    """Write a dataset's trajectories; the file is there whole, or not at all.

    Args:
        dataset: Folder of the dataset.
        output: The file, replaced if there.
        form: One of `FORMS`.
        options: What to write.
        advance: Called with the number of trajectories that are done, and of all.

    Raises:
        ConfigError: an unknown form, an option out of its range, or a folder that cannot be
            written to.
        DatasetError: no dataset there.
    """
    options = options or WriteOptions()
    _check_options(form, options)
    if output.resolve().is_relative_to(dataset.resolve()):
        raise ConfigError(
            f"{output}: lies in {dataset}, which holds nothing but its own files; put it beside it"
        )
    num_total = count_trajectories(dataset)
    split = options.split or ("all" if form in _HOLDS_EVERYTHING else "train")
    selection = Selection(
        split=None if split == "all" else split,
        min_reward=options.min_reward,
        needs_content=form not in _HOLDS_EVERYTHING,
    )
    tables = _ALL_TABLES if form in _HOLDS_EVERYTHING else ("turns", "messages")
    tally = Tally()
    selected = select_trajectories(
        iterate_trajectories(dataset, tables=tables),
        selection,
        tally,
        None if advance is None else lambda num_done: advance(num_done, num_total),
    )
    with replace_whole(output) as temporary:
        if form == "verl":
            with open_spool(output) as spool:
                write_verl_prompts(selected, tally, spool, temporary, options.data_source)
        elif form == "verl-sft":
            write_verl_sft(selected, tally, temporary)
        else:
            with temporary.open("wb") as file:
                for line in _write_lines(selected, tally, form, options, dataset, output):
                    file.write(line + b"\n")
    return tally.report(_UNITS.get(form, "conversations"), output)


def _write_lines(
    trajectories: Iterator[TrajectoryRows],
    tally: Tally,
    form: str,
    options: WriteOptions,
    dataset: Path,
    output: Path,
) -> Iterator[bytes]:
    match form:
        case "openai" | "trl":
            yield from write_chat_lines(trajectories, tally, with_reasoning=form == "trl")
        case "trl-pairs":
            rule = PairRule(min_gap=options.min_gap, max_pairs=options.pairs_per_task)
            with open_spool(output) as spool:
                yield from write_pairs(trajectories, tally, spool, rule)
        case "trl-kto":
            desirable_from = options.desirable_from or 0.0
            yield from write_unpaired(trajectories, tally, desirable_from=desirable_from)
        case "atif":
            yield from write_atif(trajectories, tally)
        case _:
            yield from write_otlp(trajectories, tally, dataset, mode=options.history)


def _check_options(form: str, options: WriteOptions) -> None:
    if form not in FORMS:
        raise ConfigError(f"form {form!r}: use one of {', '.join(FORMS)}")
    if form == "trl-kto" and options.desirable_from is None:
        raise ConfigError(
            "trl-kto: say from which reward on a run is desirable, as --desirable-from 1"
        )
    if not 0 <= options.min_gap < math.inf:
        raise ConfigError(f"min_gap is {options.min_gap}; give a difference of rewards from 0 on")
    if options.pairs_per_task < 1:
        raise ConfigError(f"pairs_per_task is {options.pairs_per_task}; give at least 1")
    for name in ("min_reward", "desirable_from"):
        value = getattr(options, name)
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{name} is {value}; give a finite number")
