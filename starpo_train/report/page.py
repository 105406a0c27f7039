"""Policies, verdict, runs, dataset -> the page.

The page needs no network and no script: a strict content security policy forbids both, every
value is escaped by the template engine, and control characters are made visible first.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from starpo_train.errors import DataError
from starpo_train.gate.files import identify_dataset
from starpo_train.gate.margins import GateConfig
from starpo_train.installed import installed_version
from starpo_train.report.examples import Example, choose_examples
from starpo_train.report.forest import build_forest
from starpo_train.report.policies import (
    PolicyResult,
    PolicySummary,
    compare_cohorts,
    summarize_policy,
)
from starpo_train.report.training import DatasetView, view_dataset, view_run
from starpo_train.wholefile import write_atomically

PAGE_FILE = "report.html"

_VERDICT_KEYS = ("sentence", "reasons", "comparisons", "cohorts", "evidence", "notes")
_VERDICT_DEFAULTS: dict[str, Any] = {
    "created": None,
    "starpo_version": None,
    "superiority": None,
    "ope": None,
    "inputs": {},
    "config": {},
}

_CONTROL = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
_CONTROL |= {0x0D: None, 0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
# direction overrides could make text read as something else than it is
_CONTROL |= {code: f"⟨U+{code:04X}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def render_report(
    *,
    output: Path,
    policies: Sequence[PolicyResult],
    verdict: Path | None,
    runs: Sequence[Path],
    dataset: Path | None,
    title: str,
) -> Path:
    """Everything known about a release -> one self-contained HTML file; returns its path.

    Args:
        output: the file (ending in .html) or the folder to put `report.html` in.
        policies: evaluated policies, in the order of the table.
        verdict: `verdict.json` of the gate, or the folder that holds it.
        runs: training run folders.
        dataset: the dataset that was trained on.
        title: heading of the page.

    Raises:
        DataError: a dataset, run or verdict is missing or unreadable; nothing is written then.
    """
    decision = _read_verdict(verdict)
    config = (decision or {}).get("config") or {}
    threshold = float(config.get("success_threshold", GateConfig().success_threshold))
    summaries = [
        summarize_policy(
            policy,
            success_threshold=threshold,
            ood_cohorts=[str(name) for name in config.get("ood_cohorts") or ()],
        )
        for policy in policies
    ]
    training = view_dataset(dataset, success_threshold=threshold) if dataset else None
    harmed = frozenset(
        str(row["cohort"]) for row in (decision or {}).get("cohorts", ()) if row.get("harmed")
    )
    html = (
        make_environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            verdict=decision,
            forest=build_forest(decision) if decision else None,
            policies=summaries,
            baseline=_find_role(summaries, "baseline"),
            candidate=_find_role(summaries, "candidate"),
            cohorts=compare_cohorts(summaries, harmed=harmed),
            seen_tasks=_count_seen(summaries, training),
            runs=[view_run(path) for path in runs],
            training=training,
            examples=_choose_examples(policies, threshold),
            provenance=_collect_provenance(policies, dataset),
            strangers=_find_strangers(decision, policies),
            created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=installed_version(),
        )
    )
    target = output if output.suffix in (".html", ".htm") else output / PAGE_FILE
    write_atomically(target, html)
    return target


def make_environment() -> jinja2.Environment:
    """Template engine that cleans and escapes everything it prints."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=clean_text,
    )
    environment.filters |= {
        "percent": format_percent,
        "number": format_number,
        "count": "{:,}".format,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    return environment


def clean_text(value: Any) -> Any:
    r"""Text without invisible or unencodable characters; anything else unchanged.

    >>> clean_text("a\x00b")
    'a␀b'
    """
    if isinstance(value, Markup):
        return Markup(_clean(str(value)))  # noqa: S704 - already escaped, cleaning adds no markup
    return _clean(value) if isinstance(value, str) else value


def format_percent(value: float | None, digits: int = 1) -> str:
    """0.5 -> "50.0%"; None -> a dash."""
    return "—" if value is None else f"{100 * value:.{digits}f}%"


def format_number(value: Any) -> str:
    """A number as short as it can be read; anything else as it is.

    >>> [format_number(x) for x in (1234.5, 0.00012, 3, 2.5, None)]
    ['1,234', '0.00012', '3', '2.5', '—']
    """
    if value is None:
        return "—"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _clean(text: str) -> str:
    return text.translate(_CONTROL).encode("utf-8", "replace").decode("utf-8")


def _read_verdict(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    file = path / "verdict.json" if path.is_dir() else path
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["verdict"] not in ("PROMOTE", "BLOCK", "INCONCLUSIVE"):
            raise ValueError(f"verdict is {record['verdict']!r}")  # noqa: TRY301
        missing = [key for key in _VERDICT_KEYS if key not in record]
        if missing:
            raise ValueError(f"{missing[0]} is missing")  # noqa: TRY301
        build_forest(record)
    except FileNotFoundError:
        raise DataError(f"{file}: no verdict here; run `starpo-train gate` first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not a verdict ({error!r}); run the gate again") from None
    return _VERDICT_DEFAULTS | record


def _find_role(summaries: Sequence[PolicySummary], role: str) -> PolicySummary | None:
    return next((summary for summary in summaries if summary.role == role), None)


def _count_seen(summaries: Sequence[PolicySummary], training: DatasetView | None) -> int | None:
    """Evaluated tasks that were also trained on; None when that is not known."""
    if training is None or not summaries:
        return None
    evaluated = {task for summary in summaries for task in summary.tasks["task_id"]}
    return len(evaluated & training.train_tasks)


def _find_strangers(decision: dict[str, Any] | None, policies: Sequence[PolicyResult]) -> list[str]:
    """Policies whose dataset is not the one that the verdict was made from."""
    inputs = (decision or {}).get("inputs") or {}
    return [
        policy.name
        for policy in policies
        if policy.role in ("baseline", "candidate")
        and policy.role in inputs
        and inputs[policy.role].get("digest") != identify_dataset(policy.dataset)["digest"]
    ]


def _choose_examples(policies: Sequence[PolicyResult], threshold: float) -> list[Example]:
    by_role = {policy.role: policy for policy in reversed(policies)}
    if "baseline" not in by_role or "candidate" not in by_role:
        return []
    return choose_examples(by_role["baseline"], by_role["candidate"], success_threshold=threshold)


def _collect_provenance(
    policies: Sequence[PolicyResult], dataset: Path | None
) -> list[tuple[str, dict[str, Any]]]:
    named = [(f"{policy.name} ({policy.role})", policy.dataset) for policy in policies]
    if dataset is not None:
        named.append(("training dataset", dataset))
    return [(name, identify_dataset(path)) for name, path in named]
