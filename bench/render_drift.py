"""Recorded conversations x tokenizers -> how many trajectories have which finding, as a table.

    python bench/render_drift.py ../shared/data

reads the runs and tokenizers there (docs/tokens.md has the table). Nothing is trained.
"""

import argparse
import os
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

from starpo_trace.convert.dataset import build_dataset
from starpo_train.dataset import read_message_graphs, read_trajectories
from starpo_train.findings import FAULTS, LOSSES, NOTES
from starpo_train.modelfolder import load_tokenizer
from starpo_train.render import TurnRenderer

TOKENIZERS = ("qwen3", "deepseek_v3", "smollm2-135m-instruct")
RUNS = {
    "tau-bench": ["tau-bench-gpt4o-airline/historical_trajectories"],
    "SWE-agent": ["swe-agent-demos.tar.gz"],
    "mini-swe-agent": ["swebench-verified-gemini3pro-miniswe.tar.gz"],
    "frameworks": ["strands-evals-live-spans/mappers/fixtures", "langfuse-framework-traces"],
}


def main() -> None:
    """Export what is there, render every trajectory with every tokenizer, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets = {run: export(data, sources, folder / run) for run, sources in RUNS.items()}
        columns = {}
        for tokenizer in TOKENIZERS:
            path = unpack(data / f"tokenizer-{tokenizer}.tar.gz", folder / tokenizer)
            model = next(path.rglob("tokenizer.json")).parent
            renderer = TurnRenderer(load_tokenizer(str(model)), model_path=tokenizer)
            for run, dataset in datasets.items():
                columns[tokenizer, run] = measure(dataset, renderer)
    print_table(columns)


def unpack(archive: Path, folder: Path) -> Path:
    """An archive's content; a folder is left where it is."""
    if archive.is_dir():
        return archive
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def export(data: Path, sources: list[str], folder: Path) -> Path:
    """Recorded runs -> a dataset."""
    found = [unpack(data / source, folder / "runs") for source in sources]
    build_dataset(found, folder / "dataset")
    return folder / "dataset"


def measure(dataset: Path, renderer: TurnRenderer) -> Counter[str]:
    """Trajectories by finding, and how they end up; a row of its own each."""
    trajectories = read_trajectories(dataset)
    graphs = read_message_graphs(dataset, [t.trajectory_id for t in trajectories])
    counts: Counter[str] = Counter()
    started_s = time.process_time()
    for trajectory in trajectories:
        rendered = renderer.render_trajectory(trajectory, graphs.get(trajectory.trajectory_id, {}))
        counts.update(rendered.findings.keys())
        counts["trajectories"] += 1
        counts["turns"] += sum(turn.output_node is not None for turn in trajectory.turns)
        counts["kept"] += rendered.find_reason(keep_lossy=False) is None
        counts["kept with lossy_rendering"] += rendered.find_reason(keep_lossy=True) is None
    counts["CPU seconds"] = round(time.process_time() - started_s)
    return counts


def print_table(columns: dict[tuple[str, str], Counter[str]]) -> None:
    """A column for each tokenizer and source, as Markdown."""
    print("| |", " | ".join(f"{tokenizer}, {run}" for tokenizer, run in columns), "|")
    print("|---" * (len(columns) + 1) + "|")
    facts = ("trajectories", "turns", "kept", "kept with lossy_rendering", "CPU seconds")
    for name in (*facts, *FAULTS, *LOSSES, *NOTES):
        values = [counts[name] for counts in columns.values()]
        if any(values):
            title = name if name in facts else f"`{name}`"
            print(f"| {title} |", " | ".join(str(value or "") for value in values), "|")


if __name__ == "__main__":
    main()
