"""(Environment, data, method, seed) -> a trained policy -> how it does on unseen tasks.

Each cell is a folder of its own, done when its `result.json` is there and says that it was made from
the same settings. Its weights are thrown away: the runs on unseen tasks are what is kept.
"""

import json
import shutil
import time
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from learn.bases import TINY, Base
from learn.conditions import Log
from learn.methods import METHODS, Method, write_run_file
from learn.outsider import Outsider
from learn.play import play

RESULT_FILE = "result.json"
BEHAVIOUR = "behaviour"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything there is."""

    log: Log
    """What is recorded; a quarter of its tasks is held back for off-policy evaluation."""
    test_tasks: int
    test_attempts: int
    epochs: int
    base: Base = field(default=TINY, repr=False)
    """What models are made of; the tiny one is not in the hash of a cell's settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training, or the recorded policy itself."""

    environment: str
    data: str
    """Condition whose data it is trained on; those of `BEHAVIOUR` are not trained."""
    method: str
    seed: int

    @property
    def place(self) -> Path:
        return Path("cells", self.environment, f"seed{self.seed}", self.data, self.method)

    @property
    def splits(self) -> tuple[str, ...]:
        """Unseen tasks that it is asked to do."""
        return ("test", "shifted") if self.data == "exact" else ("test",)


def run_cell(cell: Cell, root: Path, scale: Scale, *, outsider: Outsider | None) -> dict[str, Any]:
    """Train, play, estimate, write down; or read what was written down."""
    folder = root / cell.place
    settings = describe(cell, scale)
    if (result := read_result(folder, settings)) is not None:
        return result
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begun_s = time.process_time()
    base = root / "models" / f"{cell.environment}-seed{cell.seed}"
    dataset = root / "logs" / f"{cell.environment}-seed{cell.seed}" / cell.data / "data"
    result: dict[str, Any] = {"settings": settings}
    model: Path | None = base
    if cell.method != BEHAVIOUR:
        model, told = train_cell(
            cell, folder, base=base, dataset=dataset, scale=scale, outsider=outsider
        )
        result |= told
    result["train_cpu_s"] = round(time.process_time() - begun_s, 1)
    if model is not None:
        for split in cell.splits:
            runs = play(
                model,
                cell.environment,
                split=split,
                tasks=scale.test_tasks,
                attempts=scale.test_attempts,
                seed=cell.seed,
            )
            runs.write_parquet(folder / f"{split}.parquet")
            result[split] = float((runs["reward"] >= 0.5).mean() or 0.0)
        if cell.data == "exact" and cell.method != BEHAVIOUR:
            result["ope"] = estimate(model, dataset)
    shutil.rmtree(folder / "run", ignore_errors=True)
    result["cpu_s"] = round(time.process_time() - begun_s, 1)
    (folder / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n")
    return result


def train_cell(
    cell: Cell, folder: Path, *, base: Path, dataset: Path, scale: Scale, outsider: Outsider | None
) -> tuple[Path | None, dict[str, Any]]:
    """The trained model's folder, or None where the method is refused; and what was said."""
    method = METHODS[cell.method]
    if method.trl is not None:
        if outsider is None:
            raise ValueError(f"{cell.method}: TRL's environment is needed")
        return outsider.train(
            method, folder=folder, base=base, dataset=dataset, seed=cell.seed, epochs=scale.epochs
        )
    return fit(
        method,
        folder,
        base=base,
        dataset=dataset,
        seed=cell.seed,
        epochs=scale.epochs,
        made_of=scale.base,
    )


def fit(
    method: Method,
    folder: Path,
    *,
    base: Path,
    dataset: Path,
    seed: int,
    epochs: int,
    made_of: Base = TINY,
) -> tuple[Path | None, dict[str, Any]]:
    """Train with Starpo; as `train_cell`."""
    from starpo_train.config import read_run_config
    from starpo_train.errors import DataError, ProvenanceError, TrainingError
    from starpo_train.run import train

    path = write_run_file(
        method,
        folder,
        base=base,
        dataset=dataset,
        seed=seed,
        epochs=epochs,
        made_of=made_of,
    )
    try:
        train(read_run_config(path))
    except (ProvenanceError, DataError) as error:
        return None, {"refused": str(error)}
    except TrainingError as error:
        return None, {"failed": str(error)}
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    start = records[0]
    final = json.loads((folder / "run" / "final.json").read_text())
    steps = [record for record in records if "loss" in record]
    told = {
        "algorithm": start.get("algorithm"),
        "steps": steps[-1]["step"] if steps else 0,
        "events": sorted({r["event"] for r in records if "event" in r} - {"start"}),
    }
    return folder / "run" / final["checkpoint"], told


def estimate(model: Path, dataset: Path) -> dict[str, Any]:
    """What off-policy evaluation on the tasks held back says of the model."""
    from starpo_train.errors import StarpoTrainError
    from starpo_train.ope.run import run_ope
    from starpo_train.ope.settings import OpeSettings

    try:
        found = run_ope(OpeSettings(checkpoint=str(model), dataset=dataset, split="test"))
    except StarpoTrainError as error:
        return {"failed": str(error)}
    told = found.describe()
    wis = next(each for each in told["estimates"] if each["name"] == "WIS")
    return {
        "verdict": told["verdict"]["outcome"],
        "value": wis["value"],
        "behaviour": told["behaviour"]["value"],
    }


def describe(cell: Cell, scale: Scale) -> str:
    """A hash of all that the cell is made with, but for the code."""
    method = None if cell.method == BEHAVIOUR else METHODS[cell.method]
    made_with = (cell, method, scale) if scale.base == TINY else (cell, method, scale, scale.base)
    return blake2b(repr(made_with).encode(), digest_size=8).hexdigest()


def read_result(folder: Path, settings: str) -> dict[str, Any] | None:
    """What is written down, if it was made with these settings."""
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    return result if result["settings"] == settings else None
