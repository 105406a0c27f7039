"""verdict.json -> the banner: what was decided, what to do next, and whether to rely on it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from starpo_train.errors import DataError, StarpoTrainError
from starpo_train.gate.preflight import Preflight
from starpo_train.gate.signing import find_verdict_keys
from starpo_train.gate.verdict import STRATUM_TITLES
from starpo_train.gate.verify import verify_verdict
from starpo_train.report.forest import build_forest

WORDS = ("PROMOTE", "BLOCK", "INCONCLUSIVE")

_KEYS = ("sentence", "reasons", "comparisons", "cohorts", "evidence", "notes")
_DEFAULTS: dict[str, Any] = {
    "created": None,
    "starpo_version": None,
    "code": {},
    "superiority": None,
    "superiority_p_value": None,
    "improved": False,
    "tasks_needed": None,
    "signature": None,
    "preflight": [],
    "looks": None,
    "ope": None,
    "accounting": {},
    "inputs": {},
    "also_seen": {},
    "config": {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that says how far the verdict can be relied on."""

    name: str
    css: str
    """pass | fail | unclear | reported."""
    state: str
    """In a few words."""
    detail: str
    """In a sentence; a command to type is in backquotes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Banner:
    """The top of the page."""

    word: str
    """PROMOTE | BLOCK | INCONCLUSIVE | none."""
    sentence: str
    next_step: str
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    also: tuple[str, ...]
    """What stands beside the verdict."""
    alarms: tuple[tuple[str, str], ...]
    """(what a better policy is called, by how much) of other policies that beat the candidate."""
    checks: tuple[Check, ...]


def read_verdict(path: Path | None) -> dict[str, Any] | None:
    """`verdict.json`, or the folder that holds it -> its record, with every key that the page reads.

    Raises:
        DataError: there is none, or it is none of ours.
    """
    if path is None:
        return None
    file = find_file(path)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["verdict"] not in WORDS:
            raise ValueError(f"verdict is {record['verdict']!r}")  # noqa: TRY301
        if missing := [key for key in _KEYS if key not in record]:
            raise ValueError(f"{missing[0]} is missing")  # noqa: TRY301
        record = _DEFAULTS | record
        build_forest(record)
        view_verdict(record, signature=None)
    except FileNotFoundError:
        raise DataError(f"{file}: no verdict here; run `starpo-train gate` first") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a verdict ({error!r}); run the gate again") from None
    return record


def find_file(path: Path) -> Path:
    """A verdict's file, or that of the folder it is in."""
    return path / "verdict.json" if path.is_dir() else path


def view_verdict(record: dict[str, Any] | None, *, signature: Check | None) -> Banner:
    """A verdict's record -> Banner; without one, what to do to get it."""
    if record is None:
        return Banner(
            word="none",
            sentence="No gate was run on these policies: this page shows numbers, not a decision.",
            next_step="Run `starpo-train gate --baseline DATASET --candidate DATASET -o gate`, then "
            "this report with `--verdict gate`.",
            reasons=(), notes=(), also=(), alarms=(), checks=(),
        )  # fmt: skip
    preflight = check_preflight(record["preflight"])
    also = [record["superiority"]] if record["superiority"] else []
    also += [f"The candidate is {item['statement']}." for item in record["evidence"]]
    if record["ope"]:
        also.append(record["ope"]["statement"])
    return Banner(
        word=record["verdict"],
        sentence=record["sentence"],
        next_step=choose_next_step(record, preflight),
        reasons=tuple(record["reasons"]),
        notes=tuple(record["notes"]),
        also=tuple(also),
        alarms=tuple(
            (item["name"], item["statement"])
            for item in record["evidence"]
            if item["high"] is not None and item["high"] < 0
        ),
        checks=(
            *([signature] if signature else []),
            preflight,
            check_looks(record),
        ),
    )


def choose_next_step(record: dict[str, Any], preflight: Check) -> str:
    """One line: what to do upon the verdict."""
    if preflight.css == "fail":
        return "Repair or leave out the tasks that the preflight names, then run the gate again."
    if record["verdict"] == "PROMOTE":
        claim = "" if record["improved"] else " Do not call it better: that is not shown."
        return (
            "Ship exactly the weights that were evaluated, and keep the baseline at hand; if it has "
            f"to come back, say so with `starpo-train gate --rolled-back`.{claim}"
        )
    if record["verdict"] == "BLOCK":
        return (
            "Do not ship. Start with the first reason, then look at the worst regressed pairs below: "
            "they show where the runs part."
        )
    needed = record["tasks_needed"]
    if not needed:
        return "Do not ship on this. Settle what the first reason names, then run the gate again."
    widest = next((c for c in record["comparisons"] if c["tasks_needed"] == needed), {})
    now, where = widest.get("num_tasks"), STRATUM_TITLES.get(widest.get("stratum", ""), "")
    more = f", {needed - now:,} more than the {now:,} so far" if now and needed > now else ""
    return (
        f"Do not ship on this. Evaluate both policies on about {needed:,} tasks{' ' * bool(where)}"
        f"{where}{more} (new tasks, not more attempts), or widen the margin first and say why."
    )


def check_signature(path: Path, record: dict[str, Any], key_file: Path | None) -> Check:
    """Is the verdict as it was signed, and is what it saw still the same?"""
    name = "Signature"
    signature = record["signature"]
    if signature is None:
        return Check(
            name=name, css="unclear", state="not signed",
            detail="Anyone could have edited it; sign with `starpo-train gate --key FILE`.",
        )  # fmt: skip
    key_id = str(signature).split(":")[1] if str(signature).count(":") == 2 else "?"
    try:
        if find_verdict_keys(key_file) is None:
            return Check(
                name=name, css="unclear", state="signed, not verified here",
                detail=f"By key {key_id}; verify with `starpo-train report --key FILE`.",
            )  # fmt: skip
        found = verify_verdict(path, key_file=key_file)
    except StarpoTrainError as error:
        return Check(
            name=name, css="fail", state="broken",
            detail=str(error).removeprefix(f"{find_file(path)}: "),
        )  # fmt: skip
    absent = f" Not here to compare: {', '.join(found.absent)}." if found.absent else ""
    return Check(
        name=name, css="pass", state="verified",
        detail=f"By key {found.key_id}; {len(found.same)} of the things it saw are unchanged.{absent}",
    )  # fmt: skip


def check_preflight(found: Sequence[dict[str, Any]]) -> Check:
    """What an oracle and a null agent did on the tasks."""
    known = {field.name for field in fields(Preflight)}
    checks = [Preflight(**{key: row[key] for key in known & row.keys()}) for row in found]
    if not checks:
        return Check(
            name="Preflight", css="reported", state="not run",
            detail="Whether the tasks tell good from bad is not known; give `starpo-train gate "
            "--oracle DATASET --null DATASET`.",
        )  # fmt: skip
    faults = [fault for check in checks for fault in check.describe_faults()]
    if faults:
        return Check(name="Preflight", css="fail", state="broken tasks", detail=" ".join(faults))
    done = {"oracle": "The oracle solved all {}", "null": "the null agent none of {}"}
    said = "; ".join(done[check.agent].format(f"{check.num_tasks:,} tasks") for check in checks)
    is_half = {check.agent for check in checks} != {"oracle", "null"}
    return Check(
        name="Preflight", css="unclear" if is_half else "pass",
        state="half run" if is_half else "passed", detail=f"{said[:1].upper()}{said[1:]}.",
    )  # fmt: skip


def check_looks(record: dict[str, Any]) -> Check:
    """Which look at this evaluation it is, and what that costs."""
    looks = record["looks"]
    if not looks:
        return Check(
            name="Looks", css="reported", state="not counted",
            detail="The verdict does not say how often this evaluation was looked at.",
        )  # fmt: skip
    number = int(looks["number"])
    if looks["mode"] != "sequential":
        css = "unclear" if number > 1 else "pass"
        detail = "The bounds hold for a single look."
        if number == 1:
            detail += ' To look again, set `gate.looks = "sequential"` and give `--looks FILE`.'
        return Check(
            name="Looks",
            css=css,
            state="first look" if number == 1 else f"look {number}",
            detail=detail,
        )
    p_value = record["superiority_p_value"]
    wealth = (
        "" if not p_value else f" The e-process against “no better” stands at {1 / p_value:,.3g}"
    )
    wealth += f" ({1 / float(record['config']['alpha']):g} is proof)." if wealth else ""
    return Check(
        name="Looks", css="pass", state=f"look {number}, sequential",
        detail=f"The bounds hold at every look.{wealth}{' ' + str(looks['note']) if looks.get('note') else ''}",
    )  # fmt: skip
