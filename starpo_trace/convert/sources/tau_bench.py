"""tau-bench's result files -> runs.

A file is one JSON array: `{task_id, trial, reward, info, traj}` for each run, where `traj` is the
chat of the agent. The file tells neither model nor domain: the model stands in the names that
tau-bench gives its files, the domain in the first line of the agent's policy.
"""

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Final

from starpo_trace.convert.otlp import MalformedSpan, SpanRow
from starpo_trace.convert.sources.chats import write_chat
from starpo_trace.convert.sources.files import SourceFile
from starpo_trace.convert.sources.runids import hash_content
from starpo_trace.convert.sources.runs import RunFacts, RunWriter, read_each
from starpo_trace.convert.sources.verdicts import Verdict

FORM: Final = "tau-bench"

_FIELDS: Final = frozenset({"task_id", "reward", "info", "traj"})
_STRATEGIES: Final = r"(?:tool-calling|act|react|few-shot)"
_FILE_NAMES: Final = (
    re.compile(rf"{_STRATEGIES}-(?P<model>.+)-\d+(?:\.\d+)?_range_"),
    re.compile(r"(?P<model>.+)-(?:airline|retail|telecom)\.jsonl?\b"),
)
_POLICY: Final = re.compile(r"\s*#\s*(\w+) agent policy", re.IGNORECASE)


def is_run(value: Any) -> bool:
    """Whether a value is one run of a result file."""
    return isinstance(value, dict) and value.keys() >= _FIELDS


def read_run(value: Any, file: SourceFile) -> Iterator[SpanRow | MalformedSpan]:
    """One run of a result file -> its spans."""
    policy = read_model_name(file.path)
    yield from read_each(
        [value], lambda run: _read_run(run, policy, file.source), source=file.source, what="task"
    )


def read_model_name(path: PurePath) -> str | None:
    """Name that tau-bench gave a file -> the model in it."""
    found = next((match for form in _FILE_NAMES if (match := form.match(path.name))), None)
    return None if found is None else found["model"]


def _read_run(run: Any, policy: str | None, source: str) -> list[SpanRow]:
    if not is_run(run):
        raise ValueError(f"no run with {', '.join(sorted(_FIELDS))}")
    chat, info = run["traj"], run["info"] or {}
    if not isinstance(chat, list) or not isinstance(info, dict):
        raise TypeError("`traj` is no list, or `info` no object")
    domain = _read_domain(chat)
    task = str(run["task_id"])
    end, reason = _read_end(info)
    facts = RunFacts(
        form=FORM,
        key=(policy, hash_content(run)),
        task_id=task if domain is None else f"{domain}/{task}",
        attempt=run.get("trial"),
        policy_id=policy,
        environment_name=FORM if domain is None else f"{FORM} {domain}",
        end=end,
        end_reason=reason,
    )
    writer = RunWriter(facts, source)
    write_chat(writer, chat)
    writer.reward(Verdict(value=run["reward"], low=0.0, high=1.0))
    return writer.build()


def _read_domain(chat: list[Any]) -> str | None:
    first = chat[0] if chat else None
    text = first.get("content") if isinstance(first, dict) else None
    found = _POLICY.match(text) if isinstance(text, str) else None
    return None if found is None else found[1].lower()


def _read_end(info: dict[str, Any]) -> tuple[str, str | None]:
    """What ended a run: the environment judges it when it is done, and not when steps ran out."""
    if "error" in info:
        return "error", None if info["error"] is None else str(info["error"])
    if "reward_info" in info:
        return ("truncated", None) if info["reward_info"] is None else ("terminated", None)
    return "unknown", None
