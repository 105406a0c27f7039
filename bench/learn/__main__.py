"""`python bench/learn [tune | collapse | rounds | temperature] ...`; without a word, the table of `whole.py`."""

import os
import sys
from importlib import import_module
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
PLACES = [str(BENCH), str(BENCH.parent)]
PARTS = ("tune", "collapse", "rounds", "temperature")

if __name__ == "__main__":
    sys.path[:0] = PLACES
    os.environ["PYTHONPATH"] = os.pathsep.join(PLACES)  # for worker processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    part = sys.argv.pop(1) if sys.argv[1:2] and sys.argv[1] in PARTS else "whole"
    import_module(f"learn.{part}").main()
