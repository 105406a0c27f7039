"""Folder -> files of runs in the folders below it, where agents keep a folder for each run.

Only names that nothing else has are looked for there: spans lie where somebody named them.
"""

import os
from collections.abc import Collection
from pathlib import Path

from starpo_trace.convert.sources.filenames import is_run_file
from starpo_trace.errors import SourceError


def list_nested_runs(folder: Path, known: Collection[Path]) -> list[Path]:
    """Files of runs and their reports at any depth below a folder, but for known ones, sorted.

    Raises:
        SourceError: a folder cannot be read.
    """
    found = []
    for place, _, names in os.walk(folder, onerror=_refuse):
        found += [
            path for name in names if is_run_file(name) and (path := Path(place) / name).is_file()
        ]
    return sorted(set(found).difference(known))


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
