"""Which process holds a span, and which objects are still alive in it.

A fork copies every open span. It is the parent's to end: ended in the child too, the same span would
be recorded twice, with two ends.
"""

import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import weakref

_T = TypeVar("_T")


class Lineage:
    """This process among its ancestors."""

    num_forks = 0
    """Forks since the first process; another number than at a span's begin: an inherited span."""


def _note_fork() -> None:
    Lineage.num_forks += 1


def list_alive(objects: "weakref.WeakValueDictionary[int, _T]") -> list[_T]:
    """Objects by id -> those that are still alive, while other threads add some.

    A `WeakSet` cannot be gone through then.
    """
    found = (reference() for reference in objects.valuerefs())
    return [item for item in found if item is not None]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
