"""`python bench/learn`; see `whole.py`."""

import os
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
PLACES = [str(BENCH), str(BENCH.parent)]

if __name__ == "__main__":
    sys.path[:0] = PLACES
    os.environ["PYTHONPATH"] = os.pathsep.join(PLACES)  # for worker processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from learn.whole import main

    main()
