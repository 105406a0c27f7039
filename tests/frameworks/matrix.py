"""What a run of the tests showed of each framework -> cells of the matrix.

A test says which features it shows (`@pytest.mark.shows("tools", "streaming")`), and its outcome fills
their cells; nothing else does. What a framework cannot do is exempt by name, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Final

FEATURES: Final = {
    "llm": "model calls: prompts, answers, tool schemas and usage as on the wire",
    "async": "async programs",
    "streaming": "streamed answers",
    "tools": "tools that ran, with arguments, result and the call that asked for them",
    "parallel": "several tools of one answer",
    "reasoning": "what the model thought",
    "sub-agents": "agents inside of a run, or a handoff",
    "state": "the framework's own state as it changes",
    "error": "a failure ends the run as `error`",
    "cancel": "a cancellation ends the run as `abandoned`",
}
"""Feature -> what is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """What a file of tests is about: its global `FRAMEWORK`."""

    name: str
    """As in the documentation."""
    packages: tuple[str, ...]
    """Distributions whose versions are told."""
    page: str
    """Its page in docs/frameworks, without the ending."""
    exempt: Mapping[str, str] = field(default_factory=dict)
    """Feature that the framework does not have -> why."""

    def __post_init__(self) -> None:
        unknown = set(self.exempt) - set(FEATURES)
        assert not unknown, f"{self.name}: no features: {sorted(unknown)}"


class Outcomes:
    """Outcomes of tests, by framework and feature."""

    def __init__(self) -> None:
        self.frameworks: dict[str, dict[str, Any]] = {}

    def add(self, framework: Framework, features: list[str], outcome: str) -> None:
        """Count one test: `passed`, `failed` or `skipped`."""
        told = self.frameworks.setdefault(framework.name, _describe(framework))
        told["tests"][outcome] += 1
        for feature in features:
            told["cells"].setdefault(feature, _count())[outcome] += 1

    def add_tree(self, framework: Framework, tree: list[dict[str, Any]]) -> None:
        """Keep the spans of the run that the framework's page shows."""
        self.frameworks.setdefault(framework.name, _describe(framework))["tree"] = tree


def _describe(framework: Framework) -> dict[str, Any]:
    return {
        "page": framework.page,
        "versions": {package: metadata.version(package) for package in framework.packages},
        "exempt": dict(framework.exempt),
        "tests": _count(),
        "cells": {},
        "tree": None,
    }


def _count() -> dict[str, int]:
    return {"passed": 0, "failed": 0, "skipped": 0}
