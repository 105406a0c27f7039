"""What the comparisons with other packages share; run by `make oracles` only."""

import json
from collections import Counter
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent.parent / "train" / "golden"
CASES_PER_FUNCTION = 12


def write_golden_file(name: str, package: str, version: str, cases: list[dict[str, Any]]) -> None:
    """Some cases of each function -> tests/train/golden/NAME.json.

    A case is {"function": the oracle's function, "inputs": {...}, "outputs": {...}}; tensors and
    arrays become lists, floats keep every digit. The first dozen of each function are written.
    """
    if installed_version(package) != version:
        raise ValueError(
            f"{package} {installed_version(package)} is installed, not {version}; golden vectors "
            "come from the pinned version: run `make oracles`."
        )
    written: Counter[str] = Counter()
    kept = []
    for case in cases:
        written[case["function"]] += 1
        if written[case["function"]] <= CASES_PER_FUNCTION:
            kept.append(json.dumps(_to_plain(case)))
    head = f'{{"package": {json.dumps(package)}, "version": {json.dumps(version)}, "cases": [\n'
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / f"{name}.json").write_text(head + ",\n".join(kept) + "\n]}\n")


@pytest.fixture(scope="session")
def write_golden():
    """`write_golden(name, package, version, cases)`, see `write_golden_file`."""
    return write_golden_file


def _to_plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value
