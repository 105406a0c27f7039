"""Installed SDKs -> patched SDKs, and back.

One small module per SDK, applied when the SDK is imported, at once if it already is.
"""

import importlib
import sys
from importlib import metadata
from typing import Any, Final

import wrapt

from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.targets import TARGETS
from starpo_trace.guard import Guard, warn_once

_PATCHES: Final = {target: patch for patch, targets in TARGETS.items() for target in targets}

_applied = PatchSet()
_active_targets: set[str] = set()
_hooked_targets: set[str] = set()
_is_active = False


def apply_patches() -> None:
    """Patch every known SDK, now or when it is imported."""
    global _is_active  # noqa: PLW0603 (import hooks cannot be removed, only switched)
    _is_active = True
    for target in _PATCHES:
        if target in sys.modules:
            _apply(target)
        if target not in _hooked_targets:
            _hooked_targets.add(target)
            wrapt.register_post_import_hook(_on_import, target)


def remove_patches() -> None:
    """Put back every patched attribute."""
    global _is_active  # noqa: PLW0603
    _is_active = False
    _active_targets.clear()
    _applied.restore()


def _on_import(module: object) -> None:
    target = getattr(module, "__name__", "")
    if _is_active and target in _PATCHES:
        _apply(target)


def _apply(target: str) -> None:
    if target in _active_targets:
        return
    _active_targets.add(target)
    with Guard(f"patching {target}"):
        patch = importlib.import_module(_PATCHES[target])
        try:
            patch.apply(_applied, sys.modules[target])
        except AttributeError as error:
            warn_of_missing_seam(patch, target, error)


def warn_of_missing_seam(patch: Any, target: str, error: AttributeError) -> None:
    """Log, once, that an SDK of this version has not what a patch needs."""
    for package, tested in patch.TESTED.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "of unknown version"
        warn_once(
            f"missing seam {target}",
            "some calls through %s %s are not recorded: %s; tested with %s %s",
            package,
            version,
            error,
            package,
            tested,
        )
