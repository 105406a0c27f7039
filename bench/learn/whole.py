"""Does it learn? Logged traffic -> every method -> unseen tasks -> the gate's verdicts and the truth.

    python bench/learn [--quick] [--json FILE] [--output DIR] [--records FILE] [--only ENV ...]
    python bench/learn --model smollm2 --output learn-smollm2 --only frozen_lake --conditions exact

Five small games (`envs/`), two of which no setting was chosen on (`UNSEEN`), five ways for a log to reach the
trainer (`conditions.py`), thirteen methods (`methods.py`), five seeds, each with its own behaviour model,
log and tasks. Every step is a folder below DIR (default `learn-output`) and is not done twice: interrupt
it, run it again, and it goes on. FILE (default DIR/records.jsonl) holds a line for every cell; what is in
it is not done again, so seeds can be run on several machines. `--quick`: two games, two conditions, two seeds, without TRL.

Figures: success on unseen tasks with paired 95 % intervals over seeds; `auto` beside the best single
method, filtered BC and the recorded policy; the gate's and off-policy evaluation's answers beside the truth.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from figures import conclude

from learn import TUNED_ON, UNSEEN, work
from learn.bases import SMOLLM2, make_pretrained_base
from learn.cells import BEHAVIOUR, Cell, Scale, describe
from learn.conditions import CONDITIONS, Log
from learn.decide import rank_ope, summarize
from learn.envs import GAMES
from learn.methods import METHODS
from learn.records import Record, find_key, read_records, write_records
from learn.table import Place, find_cell, is_run
from learn.targets import list_quick_targets, list_targets
from learn.words import print_table

FULL = Scale(log=Log(tasks=128, attempts=4), test_tasks=200, test_attempts=2, epochs=4)
RECORDS_FILE = "records.jsonl"
SMALL = Scale(log=Log(tasks=32, attempts=4), test_tasks=50, test_attempts=2, epochs=2)
"""With a pretrained model."""
QUICK = Scale(log=Log(tasks=64, attempts=4), test_tasks=100, test_attempts=2, epochs=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done."""

    root: Path
    environments: tuple[str, ...]
    conditions: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    scale: Scale
    workers: int
    records: Path | None = None
    """What is done, if not in `root`."""

    def list_cells(self) -> list[Cell]:
        """Each training once, seed by seed, so that an early stop leaves whole tables."""
        cells = {
            find_cell(environment, condition, method, seed): None
            for seed in self.seeds
            for environment in self.environments
            for condition in self.conditions
            for method in (BEHAVIOUR, *self.methods)
            if is_run(condition, method)
        }
        return list(cells)


def do_all(plan: Plan) -> list[Record]:
    """Behaviour models, logs, cells, as far as they are not in the records -> the records."""
    path = plan.root / RECORDS_FILE if plan.records is None else plan.records
    records = read_records(path)
    known = {(*find_key(record), record["settings"]) for record in records}
    cells = [
        cell
        for cell in plan.list_cells()
        if (cell.environment, cell.data, cell.method, cell.seed, describe(cell, plan.scale))
        not in known
    ]
    if not cells:
        return records
    pairs = list(dict.fromkeys((cell.environment, cell.seed) for cell in cells))
    recorded = [
        Cell(environment=environment, data="exact", method=BEHAVIOUR, seed=seed)
        for environment, seed in pairs
    ]
    logs = {(cell.environment, cell.seed, cell.data) for cell in cells}
    logs |= {(*pair, "exact") for pair in pairs}  # `late` is made of it
    context = get_context("spawn")
    with ProcessPoolExecutor(plan.workers, mp_context=context) as pool:
        run = _Progress(pool)
        run(
            "behaviour models",
            [(work.make_model, plan.root, *pair, plan.scale.base) for pair in pairs],
        )
        concurrency = plan.scale.base.concurrency
        for data in CONDITIONS:
            places = [pair for pair in pairs if (*pair, data) in logs]
            jobs = [
                (work.make_log, plan.root, *pair, data, plan.scale.log, concurrency)
                for pair in places
            ]
            run(f"logs: {data}", jobs)
        wanted = list(dict.fromkeys([*recorded, *cells]))
        run("cells", [(work.do_cell, plan.root, cell, plan.scale) for cell in wanted])
        records += run("verdicts", [(work.tell_cell, plan.root, cell) for cell in wanted])
    write_records(path, records)
    return read_records(path)


class _Progress:
    """Jobs done side by side, with a bar; the first failure ends it."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def __call__(self, title: str, jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
        if not jobs:
            return []
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        futures = [self._pool.submit(*job) for job in jobs]
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress:
            bar = progress.add_task(title, total=len(futures))
            try:
                for future in as_completed(futures):
                    future.result()
                    progress.advance(bar)
            except BaseException:
                self._pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]


def collect(plan: Plan, records: Sequence[Record]) -> dict[str, Any]:
    """Records of the plan's cells -> the figures."""
    found = {find_key(record): record for record in records}
    keys = [(cell.environment, cell.data, cell.method, cell.seed) for cell in plan.list_cells()]
    found = {key: found[key] for key in keys if key in found}
    planned = list(found.values())
    places = [Place(found, each, plan.conditions, plan.seeds) for each in plan.environments]
    return {
        "rows": [row for place in places for row in place.list_rows()],
        "auto": [row for place in places for row in place.judge_auto()],
        "gate": summarize(planned),
        "ope": rank_ope(planned),
        "cells": len(planned),
        "cpu_hours": round(sum(record["cpu_s"] for record in planned) / 3600, 2),
    }


def main() -> None:
    """Do it, print the tables, write the JSON."""
    begun_s = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--output", type=Path, default=Path("learn-output"))
    parser.add_argument("--records", type=Path, metavar="FILE")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=GAMES, default=(*TUNED_ON, *UNSEEN))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS))
    parser.add_argument("--conditions", nargs="+", default=CONDITIONS, choices=CONDITIONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2, 3, 4))
    parser.add_argument("--model", metavar="smollm2|FOLDER", help="instead of tiny models")
    options = parser.parse_args()
    scale, methods = FULL, options.methods or tuple(METHODS)
    if options.model:
        if options.quick:
            parser.error("--quick is of the tiny models; leave out --quick or --model")
        if options.model != SMOLLM2 and not Path(options.model).is_dir():
            parser.error(f"--model {options.model}: neither `smollm2` nor a folder")
        scale = replace(SMALL, base=make_pretrained_base(options.model))
        if options.methods is None:  # TRL's trainers are given tiny models only
            methods = tuple(name for name, method in METHODS.items() if method.trl is None)
    plan = Plan(
        root=options.output.resolve(),
        environments=tuple(options.only),
        conditions=tuple(options.conditions),
        methods=tuple(methods),
        seeds=tuple(dict.fromkeys(options.seeds)),
        scale=scale,
        workers=options.workers,
        records=options.records,
    )
    if options.quick:
        plan = Plan(
            root=plan.root / "quick",
            environments=("bandit", "frozen_lake"),
            conditions=("exact", "closed"),
            methods=("auto", "starpo", "topr", "filtered_bc", "awr"),
            seeds=(0, 1),
            scale=QUICK,
            workers=options.workers,
        )
    figures = collect(plan, do_all(plan))
    print_table(figures)
    conclude(
        "learn",
        list_quick_targets(figures) if options.quick else list_targets(figures, unseen=UNSEEN),
        {"scale": repr(plan.scale), "model": options.model, "seeds": list(plan.seeds), **figures},
        begun_s=begun_s,
        is_quick=options.quick,
        path=options.json,
    )
