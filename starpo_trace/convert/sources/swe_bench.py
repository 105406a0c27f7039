"""SWE-bench's reports -> rewards of runs that stand in files of their own.

Read are the report of an instance (`report.json`) and that of a whole run (`MODEL.ID.json`, with
`resolved_ids`). Instances that the harness failed on, or did not run, have no verdict.
"""

from collections.abc import Iterator
from typing import Any, Final

from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.sources.files import SourceFile
from starpo_trace.convert.sources.runfolders import (
    name_judged_run,
    name_reported_run,
    name_trajectory,
)
from starpo_trace.convert.sources.runids import hash_ids
from starpo_trace.convert.sources.verdicts import Verdict, make_reward

FORM: Final = "swe-bench"

_INSTANCE_FIELDS: Final = frozenset({"resolved", "patch_successfully_applied"})
_RUN_FIELDS: Final = frozenset({"resolved_ids", "unresolved_ids"})
_VALUES: Final = {"resolved_ids": 1.0, "unresolved_ids": 0.0, "empty_patch_ids": 0.0}
"""An empty patch is one that the harness had not to run to know."""


def is_instance_report(value: Any) -> bool:
    """Whether a document is the report of one instance, or of several by their ids."""
    if not isinstance(value, dict):
        return False
    return _is_verdict(value) or (bool(value) and all(map(_is_verdict, value.values())))


def is_run_report(value: Any) -> bool:
    """Whether a document is the report of a whole run."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), list) for name in _RUN_FIELDS
    )


def read_instance_report(value: Any, file: SourceFile) -> Iterator[SpanRow]:
    """Report of an instance -> its reward; without an id it is that of the report's folder."""
    folder = file.path.parent.resolve()
    verdicts = {folder.name: value} if _is_verdict(value) else value
    for instance, verdict in verdicts.items():
        run = name_judged_run(folder, instance)
        yield _make_row(run, instance, _read_resolved(verdict["resolved"]), file)


def read_run_report(value: Any, file: SourceFile) -> Iterator[SpanRow]:
    """Report of a run -> a reward for each instance that has a verdict."""
    for name, resolved in _VALUES.items():
        ids = value.get(name)
        for each in ids if isinstance(ids, list) else ():
            instance = str(each)
            yield _make_row(name_reported_run(file.path, instance), instance, resolved, file)


def _is_verdict(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= _INSTANCE_FIELDS


def _read_resolved(value: Any) -> Any:
    """A truth value -> 1 or 0; anything else is left as it is, and no reward."""
    return float(value) if isinstance(value, bool) else str(value)


def _make_row(run: str, instance: str, value: Any, file: SourceFile) -> SpanRow:
    return make_reward(
        Verdict(value=value, name="resolved", low=0.0, high=1.0),
        name_trajectory(run, instance),
        form=FORM,
        ids=hash_ids(FORM, run, instance, value),
        source=file.source,
        task_id=instance,
    )
