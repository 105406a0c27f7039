"""One trajectory, several processes: what crosses between them, and what tells its parts apart.

The process that begins a trajectory numbers its steps 0, 1, 2 ... Any other one that records steps
of it (reached over the network, forked, or resumed later) is another part, with an id and numbers
of its own, so that two processes which know nothing of each other never give the same number to
two steps of one part. Over the network identity travels as W3C baggage, across time as a token.
"""

import base64
import binascii
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.util.types import AttributeValue

from starpo_trace import semconv
from starpo_trace.capture.outcome import redact_text

PartKind = Literal["resume", "remote", "fork"]
Identity = Mapping[str, str | int]

STEP_SAMPLED_KEY: Final = otel_context.create_key("starpo-step-sampled")
"""Set inside a step that belongs to no trajectory: whether it is recorded."""
_CARRIED: Final = (semconv.TASK_ID, semconv.POLICY_ID)
_OPTIONAL: Final = (*_CARRIED, semconv.PART, semconv.SAMPLED)
_MAX_BAGGAGE_CHARACTERS: Final = 512
_MAX_STEPS: Final = 2**31
_TOKEN_PREFIX: Final = "starpo1."  # noqa: S105 (a format, no secret)
_IDENTITY_KEYS: Final = (
    semconv.AGENT_NAME,
    semconv.TASK_ID,
    semconv.ATTEMPT,
    semconv.SEED,
    semconv.POLICY_ID,
    semconv.ENVIRONMENT_NAME,
    semconv.ENVIRONMENT_VERSION,
    semconv.COHORT,
    semconv.CONVERSATION_ID,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one process records of a trajectory that another one began."""

    id: str
    """`{kind}-{random}`."""
    kind: PartKind
    """How this process came to it."""
    base: int
    """Number of its first step: how many steps had begun where it branched off."""
    parent: str | None
    """Part it branched off; None for the first."""

    def describe(self) -> dict[str, AttributeValue]:
        """Attributes of a span in this part."""
        attributes: dict[str, AttributeValue] = {
            semconv.PART: self.id,
            semconv.PART_BASE: self.base,
        }
        if self.parent is not None:
            attributes[semconv.PART_PARENT] = self.parent
        return attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A trajectory that another process began, as it arrived here."""

    trajectory_id: str
    """Its id."""
    num_steps: int
    """Steps the sender had begun."""
    part: str | None
    """Part of the sender; None for the first."""
    identity: Identity
    """Task and policy, under their attribute keys."""
    is_sampled: bool
    """Whether the trajectory is recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a run was interrupted: what a resume token holds."""

    trajectory_id: str
    """Its id."""
    trace_id: int
    """Trace of the root span that the resumed one links to; 0 when nothing was recorded."""
    span_id: int
    """That root span."""
    is_sampled: bool
    """Whether the trajectory is recorded."""
    num_steps: int
    """Steps begun so far."""
    part: str | None
    """Part that was interrupted; None for the first."""
    identity: Identity
    """Attributes that say whose run it is."""
    tail: Sequence[Sequence[str | int | None]] = field(default=())
    """Ends of the latest histories, so that what follows is written as new messages only."""


class _Counted(Protocol):
    @property
    def num_steps(self) -> int: ...


class _LiveCount(str):
    """Baggage value that says, when it is sent, how many steps have begun by then."""

    source: _Counted

    def __str__(self) -> str:
        return str(self.source.num_steps)


def make_part(kind: PartKind, *, base: int, parent: str | None) -> Part:
    """A part with a new id."""
    return Part(id=f"{kind}-{uuid.uuid4().hex[:12]}", kind=kind, base=base, parent=parent)


def send_identity(
    context: Context,
    trajectory_id: str,
    source: _Counted,
    *,
    identity: Identity,
    part: Part | None,
    is_sampled: bool,
) -> Context:
    """Context -> the same with baggage for the processes that are called from it."""
    count = _LiveCount(source.num_steps)
    count.source = source
    entries: dict[str, object] = {
        semconv.TRAJECTORY_ID: trajectory_id,
        semconv.TRAJECTORY_NUM_STEPS: count,
        **{key: identity[key] for key in _CARRIED if key in identity},
    }
    if part is not None:
        entries[semconv.PART] = part.id
    if not is_sampled:
        entries[semconv.SAMPLED] = "0"
    context = forget_identity(context)  # that of a trajectory around this one
    for key, value in entries.items():
        if len(str(value)) <= _MAX_BAGGAGE_CHARACTERS:
            context = baggage.set_baggage(key, value, context)
    return context


def forget_identity(context: Context) -> Context:
    """Context -> the same without baggage of ours."""
    for key in (semconv.TRAJECTORY_ID, semconv.TRAJECTORY_NUM_STEPS, *_OPTIONAL):
        context = baggage.remove_baggage(key, context)
    return context


def copy_identity(source: Context, context: Context) -> Context:
    """Context -> the same with the baggage of ours that another one has."""
    context = forget_identity(context)
    for key in (semconv.TRAJECTORY_ID, semconv.TRAJECTORY_NUM_STEPS, *_OPTIONAL):
        value = baggage.get_baggage(key, source)
        if value is not None:
            context = baggage.set_baggage(key, value, context)
    return context


def receive_identity(context: Context | None = None) -> Arrival | None:
    """Baggage -> the trajectory that it names, if any. Senders are not trusted to be sane."""
    trajectory_id = baggage.get_baggage(semconv.TRAJECTORY_ID, context)
    if trajectory_id is None:
        return None
    text = str(trajectory_id)
    if not text or len(text) > _MAX_BAGGAGE_CHARACTERS:
        return None
    # The sender may mask less than this process.
    carried = {key: baggage.get_baggage(key, context) for key in _CARRIED}
    part = baggage.get_baggage(semconv.PART, context)
    return Arrival(
        trajectory_id=redact_text(text),
        num_steps=_read_count(baggage.get_baggage(semconv.TRAJECTORY_NUM_STEPS, context)),
        part=None if part is None else str(part),
        identity={
            key: redact_text(str(value)) for key, value in carried.items() if value is not None
        },
        is_sampled=baggage.get_baggage(semconv.SAMPLED, context) != "0",
    )


def write_token(checkpoint: Checkpoint) -> str:
    """Checkpoint -> opaque ASCII text, a few hundred characters."""
    fields = [
        checkpoint.trajectory_id,
        f"{checkpoint.trace_id:x}",
        f"{checkpoint.span_id:x}",
        checkpoint.is_sampled,
        checkpoint.num_steps,
        checkpoint.part,
        [checkpoint.identity.get(key) for key in _IDENTITY_KEYS],
        [list(each) for each in checkpoint.tail],
    ]
    data = json.dumps(fields, separators=(",", ":")).encode()
    return _TOKEN_PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def read_token(token: str) -> Checkpoint:
    """Text of `write_token` -> checkpoint.

    Raises:
        ValueError: it is something else, or cut.
    """
    try:
        text = token[token.index(_TOKEN_PREFIX) + len(_TOKEN_PREFIX) :]
        fields = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        trajectory_id, trace_id, span_id, is_sampled, num_steps, part, identity, tail = fields
        return Checkpoint(
            trajectory_id=str(trajectory_id),
            trace_id=int(trace_id, 16),
            span_id=int(span_id, 16),
            is_sampled=bool(is_sampled),
            num_steps=_read_exact_count(num_steps),
            part=None if part is None else str(part),
            identity={
                key: value
                for key, value in zip(_IDENTITY_KEYS, identity, strict=True)
                if isinstance(value, (str, int))
            },
            tail=[_read_link(each) for each in tail],
        )
    except (ValueError, TypeError, AttributeError, OverflowError, binascii.Error) as error:
        raise ValueError(
            f"resume token of {len(str(token))} characters cannot be read ({error}); pass what "
            "Trajectory.checkpoint() gave, unchanged"
        ) from None


def _read_link(link: Sequence[Any]) -> list[str | int | None]:
    """One end of a history, as `History.restore_tail` takes it."""
    chain, length, response = link
    bytes.fromhex(chain)
    return [chain, _read_exact_count(length or 0), None if response is None else str(response)]


def _read_exact_count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_STEPS:
        raise ValueError(f"{value!r} steps")
    return value


def _read_count(value: object) -> int:
    text = str(value)
    if text.isascii() and text.isdigit() and len(text) <= 10:
        return min(int(text), _MAX_STEPS)
    return 0
