"""Installed SDKs and frameworks -> whether this version is patched, and was tested.

Each is imported and patched as `instrument()` does it, and put back.
"""

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Final

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.targets import TARGETS

_MAX_REASON: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A package that Starpo knows, and that is installed here."""

    package: str
    """Name of the distribution."""
    version: str
    is_framework: bool
    """Whether it runs agents; else it calls models."""
    tested: str
    """Versions that were tested."""
    untested: tuple[str, ...]
    """Packages that it needs, or itself, of other versions than were tested."""
    failures: tuple[str, ...]
    """Why parts of it are not recorded; empty: all are."""
    num_patched: int
    """Modules that are recorded."""


def check_installed(advance: Callable[[str], None] | None = None) -> list[Installed]:
    """Packages that are installed here, patched one after the other.

    Args:
        advance: called with the name of the package that comes next.
    """
    found: dict[str, Installed] = {}
    for patch_name, targets in TARGETS.items():
        patch = importlib.import_module(patch_name)
        versions = {name: told for name in patch.TESTED if (told := _find_version(name))}
        if not versions:
            continue
        package = next(iter(versions))
        if advance is not None:
            advance(package)
        failures, num_patched = _try_patches(patch, targets)
        before = found.get(package)
        found[package] = Installed(
            package=package,
            version=versions[package],
            is_framework=".frameworks." in patch_name,
            tested=before.tested if before else patch.TESTED[package],
            untested=_list_untested(versions, patch.TESTED),
            failures=tuple(dict.fromkeys((*(before.failures if before else ()), *failures))),
            num_patched=(before.num_patched if before else 0) + num_patched,
        )
    return sorted(found.values(), key=lambda each: (each.is_framework, each.package))


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _list_untested(versions: Mapping[str, str], tested: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{package} {version} (tested with {tested[package]})"
        for package, version in versions.items()
        if not _is_within(version, tested[package])
    )


def _is_within(version: str, spec: str) -> bool:
    try:
        return any(
            SpecifierSet(each).contains(version, prereleases=True) for each in spec.split(" or ")
        )
    except InvalidVersion:
        return False


def _try_patches(patch: ModuleType, targets: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    failures, num_patched = [], 0
    for target in targets:
        patches = PatchSet()
        try:
            with _quietly():
                module = importlib.import_module(target)
                patch.apply(patches, module)
            num_patched += 1
        except ModuleNotFoundError as error:
            if error.name is None or not target.startswith(error.name):  # else: no such part
                failures.append(f"{target} cannot be imported: {error}")
        except BaseException as error:  # an import may even leave the process
            if isinstance(error, KeyboardInterrupt):
                raise
            failures.append(f"{type(error).__name__}: {error}"[:_MAX_REASON])
        finally:
            patches.restore()
    if not num_patched and not failures:
        failures.append("none of its modules that are recorded is there")
    return tuple(failures), num_patched


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What packages print while they are imported is not ours to say."""
    import warnings

    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
