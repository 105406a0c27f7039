"""Wrapping attributes so that they can be put back exactly as they were."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import wrapt

from starpo_trace.guard import warn_once

MISSING: Final = object()

Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One wrapped attribute."""

    owner: Any
    """Class or module that has it."""
    name: str
    """Attribute name."""
    raw: Any
    """`vars(owner)` value before, or MISSING when it was inherited."""
    replacement: Any
    """What stands there now."""


class PatchSet:
    """Patches that are put back together."""

    def __init__(self) -> None:
        self._patches: list[Patch] = []

    def wrap(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        """Wrap `owner.name`; `wrapper(wrapped, instance, args, kwargs)` is called instead.

        Raises:
            AttributeError: there is no such attribute (an SDK we do not know).
        """
        raw = vars(owner).get(name, MISSING)
        original = getattr(owner, name) if raw is MISSING else raw
        # Positionally: wrapt 2 renamed the parameters.
        replacement = wrapt.FunctionWrapper(original, wrapper)
        setattr(owner, name, replacement)
        self._patches.append(Patch(owner=owner, name=name, raw=raw, replacement=replacement))

    def restore(self) -> None:
        """Put every attribute back, the last first."""
        while self._patches:
            patch = self._patches.pop()
            if vars(patch.owner).get(patch.name, MISSING) is not patch.replacement:
                # Somebody wrapped ours; taking theirs away would break them, and ours passes
                # calls through while Starpo is off.
                warn_once(
                    f"restore {patch.owner}.{patch.name}",
                    "%r.%s was patched again after Starpo and stays so",
                    patch.owner,
                    patch.name,
                )
            elif patch.raw is MISSING:
                delattr(patch.owner, patch.name)
            else:
                setattr(patch.owner, patch.name, patch.raw)
