"""Is a dataset the same however its spans arrive, and whole however its builder dies?

    python bench/rebuild.py [--quick] [--json FILE] [--permutations N] [--kills N]

- Permutations: the spans of a corpus, with copies, in a random order, cut into files that arrive one
  after the other, the dataset brought up to date after each. The digest must be that of one build of
  everything in order, and the accounting must close.
- Kills: SIGKILL of `starpo-trace export` at a random moment of an update. The dataset must read whole,
  at its last version or at the new one, with the manifest's row counts; and a build afterwards must
  give the digest of a build from nothing.

Full: 1,000 permutations, 200 kills; quick: 100 and 20.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from convertlib.corpus import Span, encode_json, make_runs

from starpo_trace.convert.dataset import build_dataset
from starpo_trace.convert.manifest import read_manifest, scan_table
from starpo_trace.schema import TABLES

NUM_RUNS, NUM_KILL_RUNS = 6, 400
MAX_FILES = 4
NUM_COPIES = 20


def write_file(path: Path, spans: list[Span], size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (encode_json(spans[i : i + size]) for i in range(0, len(spans), size))
    path.write_bytes(b"".join(lines))


def try_permutation(spans: list[Span], work: Path, seed: int) -> dict[str, Any]:
    """One random way of arrival -> digest and accounting of the dataset."""
    draw = random.Random(seed)
    arriving = [*spans, *draw.sample(spans, NUM_COPIES)]
    draw.shuffle(arriving)
    cuts = sorted(draw.sample(range(1, len(arriving)), draw.randint(0, MAX_FILES - 1)))
    source, dataset = work / "source", work / "dataset"
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, None], strict=True)):
        size = draw.randint(1, 64)
        write_file(source / f"{draw.random()}-{number}.jsonl", arriving[start:stop], size)
        manifest = build_dataset([source], dataset)
    shutil.rmtree(source)
    shutil.rmtree(dataset)
    return {
        "digest": manifest.digest,
        "duplicates": manifest.accounting.duplicates,
        "closed": manifest.accounting.is_closed,
    }


def measure_permutations(work: Path, count: int) -> dict[str, Any]:
    spans = [span for run in make_runs(NUM_RUNS) for span in run]
    write_file(work / "ordered" / "1.jsonl", spans, 128)
    expected = build_dataset([work / "ordered"], work / "expected")
    other = 0
    for seed in range(count):
        found = try_permutation(spans, work / "permuted", seed)
        is_same = found["digest"] == expected.digest and found["closed"]
        other += not (is_same and found["duplicates"] == NUM_COPIES)
        if seed % 50 == 49:
            print(f"{seed + 1} permutations, {other} differ", file=sys.stderr, flush=True)
    return {"permutations": count, "spans": len(spans), "different": other}


def check_whole(dataset: Path) -> bool:
    """Every table reads, with the rows that the manifest says."""
    counts = read_manifest(dataset).counts
    return all(scan_table(dataset, name).collect().height == counts[name] for name in TABLES)


def measure_kills(work: Path, count: int) -> dict[str, Any]:
    runs = list(make_runs(NUM_KILL_RUNS))
    half = NUM_KILL_RUNS // 2
    source, dataset = work / "killed", work / "dataset"
    write_file(source / "1.jsonl", [span for run in runs[:half] for span in run], 128)
    before = build_dataset([source], dataset).digest
    shutil.copytree(dataset, work / "pristine")
    write_file(source / "2.jsonl", [span for run in runs[half:] for span in run], 128)
    after = build_dataset([source], work / "anew").digest
    command = [sys.executable, "-m", "starpo_trace.cli", "export", str(source), "-o", str(dataset)]
    draw = random.Random(0)
    lasts_s, kills, broken, updated = 4.0, 0, 0, 0
    while kills < count:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(draw.uniform(0.15, 1.05) * lasts_s)
        except subprocess.TimeoutExpired:
            process.kill()
        if process.wait() == -signal.SIGKILL:
            kills += 1
            digest = read_manifest(dataset).digest
            broken += not (digest in (before, after) and check_whole(dataset))
            updated += digest == after
            if kills % 10 == 0:
                print(f"{kills} kills, {broken} broken", file=sys.stderr, flush=True)
            if digest == before:
                continue
        else:
            lasts_s = time.monotonic() - started
        shutil.rmtree(dataset)
        shutil.copytree(work / "pristine", dataset)
    recovered = build_dataset([source], dataset).digest == after
    return {"kills": kills, "broken": broken, "already_updated": updated, "recovered": recovered}


def main() -> None:
    parser = argparse.ArgumentParser(description="Any order of arrival, any death of the builder.")
    parser.add_argument("--quick", action="store_true", help="100 permutations, 20 kills")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--permutations", type=int)
    parser.add_argument("--kills", type=int)
    args = parser.parse_args()
    num_permutations = args.permutations or (100 if args.quick else 1_000)
    num_kills = args.kills or (20 if args.quick else 200)
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, Any] = {
            "permutations": measure_permutations(Path(folder) / "orders", num_permutations),
            "kills": measure_kills(Path(folder) / "kills", num_kills),
        }
    rows = [
        ("orders of arrival that change the dataset", results["permutations"]["different"], 0),
        ("kills that leave no whole version", results["kills"]["broken"], 0),
        ("a build after the kills is that of nothing", int(results["kills"]["recovered"]), 1),
    ]
    results["targets"] = [
        {"name": name, "value": value, "target": target, "met": value == target}
        for name, value, target in rows
    ]
    for target in results["targets"]:
        mark = "met" if target["met"] else "MISSED"
        print(f"{target['name']:45} {target['value']} (target {target['target']}) {mark}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
