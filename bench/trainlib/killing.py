"""A dataset, a model and run files that start fast, for `train_kill.py`."""

import importlib.util
from pathlib import Path
from types import ModuleType

TASKS, ATTEMPTS, PER_STEP = 6, 4, 4


def prepare_inputs(folder: Path) -> None:
    """`folder/model` and `folder/data`, made with the helpers of the training tests."""
    helpers = load_helpers()
    helpers.build_model_folder(folder / "model", hidden_size=16, num_hidden_layers=1)
    helpers.write_bandit(folder / "data", folder / "model", num_tasks=TASKS, attempts=ATTEMPTS)


def make_run_file(folder: Path, name: str, *, num_steps: int, keep: int) -> Path:
    """A run of so many steps in `folder/name`, a checkpoint after each."""
    steps_per_epoch = TASKS * ATTEMPTS // PER_STEP
    return load_helpers().write_run_file(
        folder / f"{name}.toml",
        base=folder / "model",
        dataset=folder / "data",
        output=name,
        train={
            "epochs": num_steps // steps_per_epoch,
            "trajectories_per_step": PER_STEP,
            "learning_rate": 1e-3,
            "checkpoint_every_steps": 1,
            "keep_checkpoints": keep,
        },
    )


def load_helpers() -> ModuleType:
    """`tests/train/conftest.py`, where datasets and models are made by hand."""
    path = Path(__file__).parents[2] / "tests" / "train" / "conftest.py"
    spec = importlib.util.spec_from_file_location("train_conftest", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
