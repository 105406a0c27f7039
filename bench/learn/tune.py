"""What was tried on the environments that may be tuned on: settings -> success on `tuning` tasks.

    python bench/learn tune [--output DIR] [--tried FILE] [--json FILE] [--seeds 100 101 102]

`tried.toml` names the settings; those that are not in DIR yet are trained and played. Models, logs and
tasks are others than those of the table: seeds from 100 on, the split `tuning`.
"""

import argparse
import json
import shutil
import statistics
import sys
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from learn import TUNED_ON, work
from learn.cells import fit
from learn.conditions import CONDITIONS, DATA_OF, Log
from learn.methods import Method
from learn.play import play

LOG = Log(tasks=128, attempts=4)
TASKS, ATTEMPTS = 200, 2
SEEDS = (100, 101, 102)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting on one log."""

    environment: str
    data: str
    seed: int
    method: Method
    """Its title is the setting's name."""
    epochs: int

    @property
    def place(self) -> Path:
        digest = blake2b(repr(self).encode(), digest_size=8).hexdigest()
        return Path("tuning", f"{self.environment}-seed{self.seed}", self.data, digest)


def read_tried(path: Path) -> Iterator[tuple[Method, int, Mapping[str, Any]]]:
    """`[[tried]]` tables: name, environments, data, epochs, learning_rates, algorithm, train."""
    for entry in tomllib.loads(path.read_text())["tried"]:
        for rate in entry.get("learning_rates", [1e-3]):
            method = Method(
                title=entry["name"],
                algorithm=entry.get("algorithm", {}),
                train=entry.get("train", {}),
                learning_rate=rate,
            )
            yield method, entry.get("epochs", 4), entry


def list_trials(path: Path, seeds: tuple[int, ...]) -> list[Trial]:
    """All that is to be tried, seed by seed."""
    return [
        Trial(environment=environment, data=data, seed=seed, method=method, epochs=epochs)
        for seed in seeds
        for method, epochs, entry in read_tried(path)
        for environment in entry.get("environments", TUNED_ON)
        for data in entry.get("data", ["exact"])
    ]


def try_one(root: Path, trial: Trial) -> dict[str, Any]:
    """Train, play, write down; or read what was written down."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = root / trial.place
    written = folder / "result.json"
    if written.exists():
        return json.loads(written.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base = root / "models" / f"{trial.environment}-seed{trial.seed}"
    log = root / "logs" / f"{trial.environment}-seed{trial.seed}" / trial.data
    model, result = base, {}
    if trial.method.algorithm:
        model, result = fit(
            trial.method,
            folder,
            base=base,
            dataset=log / "data",
            seed=trial.seed,
            epochs=trial.epochs,
        )
    if model is not None:
        runs = play(
            model,
            trial.environment,
            split="tuning",
            tasks=TASKS,
            attempts=ATTEMPTS,
            seed=trial.seed,
        )
        result["success"] = float((runs["reward"] >= 0.5).mean() or 0.0)
    shutil.rmtree(folder / "run", ignore_errors=True)
    written.write_text(json.dumps(result) + "\n")
    return result


def do_all(root: Path, trials: list[Trial], workers: int) -> list[dict[str, Any]]:
    """Models, logs, trials."""
    pairs = list(dict.fromkeys((trial.environment, trial.seed) for trial in trials))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(work.make_model, root, *pair) for pair in pairs]:
            future.result()
        wanted = {(t.environment, t.seed, DATA_OF.get(t.data, t.data)) for t in trials}
        wanted |= {(*pair, "exact") for pair in pairs}
        for data in CONDITIONS:
            jobs = [each[:2] for each in sorted(wanted) if each[2] == data]
            for future in [pool.submit(work.make_log, root, *j, data, LOG) for j in jobs]:
                future.result()
        futures = [pool.submit(try_one, root, trial) for trial in trials]
        for number, future in enumerate(as_completed(futures), 1):
            future.result()
            print(f"\r{number} of {len(futures)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return [future.result() for future in futures]


def summarize(trials: list[Trial], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each setting: place -> success by seed."""
    rows: dict[str, dict[str, Any]] = {}
    for trial, result in zip(trials, results, strict=True):
        method = trial.method
        key = f"{method.title} lr {method.learning_rate:g} x{trial.epochs}"
        row = rows.setdefault(key, {"name": key, "settings": method.algorithm | method.train})
        value = result.get("success", "refused" if "refused" in result else "failed")
        row.setdefault(f"{trial.environment} {trial.data}", []).append(value)
    return list(rows.values())


def main() -> None:
    """Do it, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("learn-output"))
    parser.add_argument("--tried", type=Path, default=Path(__file__).with_name("tried.toml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trials = list_trials(options.tried, tuple(options.seeds))
    rows = summarize(trials, do_all(options.output.resolve(), trials, options.workers))
    for row in rows:
        places = {k: v for k, v in row.items() if k not in ("name", "settings")}
        told = "  ".join(f"{place}: {describe(values)}" for place, values in places.items())
        print(f"{row['name']:<34} {told}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def describe(values: list[float | str]) -> str:
    """Mean and each seed, in per cent.

    >>> describe([0.5, 0.6])
    '55.0 (50 60)'
    """
    words = [value for value in values if isinstance(value, str)]
    if words:
        return words[0]
    numbers = [100 * float(value) for value in values]
    return f"{statistics.fmean(numbers):.1f} ({' '.join(f'{n:.0f}' for n in numbers)})"
