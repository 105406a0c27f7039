"""Parts of bench/faults.py: one file per kind of fault, each `run(...) -> Part`."""
