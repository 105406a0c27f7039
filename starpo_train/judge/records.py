"""What crosses the judge's stages: items, pins, scores."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final, Literal

PARSER_VERSION: Final = "1"
"""Of `answers.py`: raised whenever the same answer would be read differently."""

Status = Literal[
    "scored",
    "abstained",
    "missing_part",
    "too_long",
    "unparsable",
    "cut",
    "refused",
    "other_model",
    "outage",
    "budget",
    "stopped",
]
"""scored: there is a number. abstained: the judge answered null. Everything else: no judgement, and
`JudgeScore.reason` says why."""

LASTING: Final = frozenset({"scored", "abstained", "unparsable", "cut", "refused"})
"""Answers of the judge, which are kept; the others are tried again by the next start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeItem:
    """One thing to judge."""

    item_id: str
    parts: Mapping[str, Any]
    """Name -> text, or a list of events (JSON objects), as a rubric needs them: `goal`,
    `trajectory`, `answer`, `context`, `plan`, `reference`."""
    trajectory_id: str | None = None
    task_id: str | None = None
    turn: int | None = None
    """The turn that is judged; None: the whole trajectory."""
    step: int | None = None
    """The turn's step, which a reward names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePin:
    """What a judgement depends on beside the item; one that differs is another judge."""

    model: str
    """Snapshot of the model."""
    prompt_hash: str
    """SHA-256 of the framing and the rubric."""
    temperature: float
    parser: str
    schema_hash: str
    """SHA-256 of the JSON schema of the answer."""
    max_output_tokens: int
    seed: int | None

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hash_json(asdict(self))

    @property
    def judge_id(self) -> str:
        """The model, and the beginning of the digest: `reward(judge_id=)`.

        Short, so that the guard which looks for a model's digest does not take it for one.
        """
        return f"{self.model}#{self.digest[:10]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeScore:
    """What the judge said of an item."""

    item_id: str
    score: float | None
    """None: no judgement, never 0 in its place."""
    reason: str
    """The judge's words; without a judgement, what was wrong."""
    status: Status
    pin: JudgePin
    content_hash: str
    """SHA-256 of what the judge was shown of the item."""
    is_cached: bool = False
    answer_format: str | None = None
    """json_schema | text: whether the endpoint was held to the schema."""
    served_model: str | None = None
    """As the answer names it."""
    fingerprint: str | None = None
    """The endpoint's `system_fingerprint`."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    num_neutralised: int = 0
    """Control tokens, look-alikes of the boundary and invisible characters made harmless."""

    @property
    def judge_id(self) -> str:
        """For `reward(judge_id=)`."""
        return self.pin.judge_id

    @property
    def judge_prompt_hash(self) -> str:
        """For `reward(judge_prompt_hash=)`."""
        return self.pin.prompt_hash


def hash_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON.

    >>> hash_json({"b": 1, "a": 2}) == hash_json({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return sha256(text.encode()).hexdigest()
