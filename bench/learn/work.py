"""What a worker process is asked to do; each job is done once and leaves a folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from peers.environments import DEFAULT_CACHE, prepare_environment

from learn.bases import TINY, Base
from learn.behaviour import make_behaviour
from learn.cells import Cell, Scale, run_cell
from learn.conditions import Log, record
from learn.methods import METHODS
from learn.outsider import Outsider
from learn.records import Record, make_record

_outsider: Outsider | None = None


def make_model(root: Path, environment: str, seed: int, base: Base = TINY) -> None:
    """`models/ENVIRONMENT-seedN`."""
    folder = root / "models" / f"{environment}-seed{seed}"
    if (folder / "made.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    told = make_behaviour(environment, seed, folder, base=base)
    (folder / "made.json").write_text(json.dumps(told, default=str) + "\n")


def make_log(
    root: Path,
    environment: str,
    seed: int,
    condition: str,
    log: Log,
    concurrency: int = TINY.concurrency,
) -> None:
    """`logs/ENVIRONMENT-seedN/CONDITION`."""
    folder = root / "logs" / f"{environment}-seed{seed}"
    marker = folder / condition / "made.json"
    if marker.exists():
        return
    model = root / "models" / f"{environment}-seed{seed}"
    record(
        environment,
        condition,
        model=model,
        folder=folder,
        log=log,
        seed=seed,
        concurrency=concurrency,
    )
    marker.write_text("{}\n")


def do_cell(root: Path, cell: Cell, scale: Scale) -> dict[str, Any]:
    """`cells/...`."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    needs_trl = cell.method in METHODS and METHODS[cell.method].trl is not None
    return run_cell(cell, root, scale, outsider=_find_outsider(root) if needs_trl else None)


def tell_cell(root: Path, cell: Cell) -> Record:
    """A cell that is done -> its record."""
    return make_record(root, cell)


def _find_outsider(root: Path) -> Outsider:
    """One for each worker."""
    global _outsider  # noqa: PLW0603  a worker's process is this module's whole life
    if _outsider is None:
        pins = Path(__file__).resolve().parents[1] / "trainlib"
        python = prepare_environment("trl", DEFAULT_CACHE, pins=pins)
        _outsider = Outsider(python, root / "trl.log")
    return _outsider
