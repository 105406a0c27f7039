"""Path of a run's file, or of a verdict on it -> the name that both know the run by.

A SWE-bench report names an instance, never the file of the run that it judges. The folders do: the
run's own (`RUN/trajs/INSTANCE/...` beside `RUN/logs/INSTANCE/report.json`), or in the harness's
logs the model's (`run_evaluation/ID/MODEL/INSTANCE/report.json`), which for SWE-agent is its name.
"""

from pathlib import Path
from typing import Final

_COMMON: Final = frozenset(
    {"trajs", "trajectories", "logs", "evaluation", "evaluations", "eval", "output", "outputs"}
    | {"out", "results", "runs", "preds", "predictions", "reports"}
)
"""Names of folders that tell no run from another."""
# Folders are resolved and files are not: a link to a file that is kept elsewhere has its name here.
_HARNESS: Final = "run_evaluation"


def name_run(folder: Path, instance: str) -> str:
    """Folder of a run's file, and its instance -> the run's name."""
    return _name_folder(_leave_instance(folder.resolve(), instance))


def name_judged_run(folder: Path, instance: str) -> str:
    """Folder of an instance's report -> name of the run that it is about."""
    folder = _leave_instance(folder.resolve(), instance)
    if folder.parent.parent.name == _HARNESS:
        around = folder.parent.parent.parent
        return _find_run_around(around, instance) or folder.name
    return _name_folder(folder)


def name_reported_run(path: Path, instance: str) -> str:
    """Report of a whole run -> name of that run: the harness calls the file `MODEL.ID.json`."""
    folder = path.parent.resolve()
    model = path.stem.rpartition(".")[0]
    if not model:
        return _name_folder(folder)
    return _find_run_around(folder, instance) or model


def name_trajectory(run: str, instance: str) -> str:
    """Run and instance -> id of the trajectory, which its rewards name."""
    return f"{run}/{instance}"


def _leave_instance(folder: Path, instance: str) -> Path:
    return folder.parent if folder.name == instance else folder


def _name_folder(folder: Path) -> str:
    """The nearest folder whose name says something."""
    while folder.name.lower() in _COMMON:
        folder = folder.parent
    return folder.name


def _find_run_around(folder: Path, instance: str) -> str | None:
    """Name of the run whose folder the harness was started in, if that is where it was."""
    if folder.name == "logs":
        folder = folder.parent
    places = (folder, folder / "trajs")
    names = (f"{instance}.traj", f"{instance}.traj.json")
    try:
        holds_run = any((place / instance / name).exists() for place in places for name in names)
    except OSError:  # too long for a name
        return None
    return _name_folder(folder) if holds_run else None
