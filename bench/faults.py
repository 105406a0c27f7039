"""What happens to spans when everything else goes wrong.

    python bench/faults.py [--quick] [--json FILE] [--only PART ...] [--seed 0]

Parts: kill (SIGKILL at random moments), disk (full, read-only, broken), overload (ten times what
the disk takes), backend (an OTLP endpoint that refuses, hangs or resets), fork (fork,
multiprocessing, gunicorn), power (a disk that loses what was not synced). Each is a file in
`faultlib/` that says what it does. The whole takes about half an hour, `--quick` some three
minutes.
"""

import argparse
import importlib
import json
import time
from pathlib import Path

from figures import exit_by_targets, name_machine, print_targets, write_json

PARTS = ("kill", "disk", "overload", "backend", "fork", "power")


def main() -> None:
    """Run the parts, print the targets, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter, with fewer runs")
    parser.add_argument("--json", type=Path, help="write figures and targets here")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = read_result(options.json)
    for name in options.only:
        print(f"{name} ...", flush=True)
        begun_s = time.monotonic()
        part = importlib.import_module(f"faultlib.{name}").run(
            quick=options.quick, seed=options.seed
        )
        result["figures"][name] = {
            **part.figures,
            "is_quick": options.quick,
            "took_s": round(time.monotonic() - begun_s),
        }
        ours = f"{name}: "
        others = [each for each in result["targets"] if not each["name"].startswith(ours)]
        result["targets"] = others + part.targets
        print_targets(part.targets, indent="  ")
        write_json(options.json, result)
    exit_by_targets(result["targets"])


def read_result(path: Path | None) -> dict:
    """Results to add to: those of other parts that the file holds already."""
    result: dict = {"bench": "faults", "figures": {}, "targets": []}
    if path is not None and path.exists():
        result = json.loads(path.read_text())
    result["machine"] = name_machine()
    return result


if __name__ == "__main__":
    main()
