"""The matrix of frameworks is what the tests showed; every framework is in it."""

import json

import pytest
from publish import RESULTS, ROOT, TABLES, judge, merge, render_block, replace_block

from starpo_trace.capture.patches.targets import TARGETS


def make_run(passed=(), failed=(), exempt=()):
    counts = {name: {"passed": 1, "failed": 0} for name in passed}
    counts |= {name: {"passed": 1, "failed": 1} for name in failed}
    return {"cells": counts, "exempt": dict.fromkeys(exempt, "it has none")}


@pytest.mark.parametrize(
    ("runs", "cell"),
    [
        ([make_run(passed=["tools"])], "shown"),
        ([make_run(passed=["tools"]), make_run(passed=["tools"])], "shown"),
        ([make_run(passed=["tools"]), make_run()], "newest"),
        ([make_run(), make_run(passed=["tools"])], ""),
        ([make_run(passed=["tools"]), make_run(failed=["tools"])], "failed"),
        ([make_run(exempt=["tools"], failed=["tools"])], "failed"),
        ([make_run(exempt=["tools"])], "exempt"),
        ([make_run()], ""),
    ],
)
def test_a_cell(runs, cell):
    """A mark needs a test that passed, at every version; one that failed is told."""
    assert judge(runs, "tools") == cell


@pytest.mark.parametrize("path", list(TABLES), ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_are_the_results(path):
    """No cell was filled by hand."""
    merged = json.loads(RESULTS.read_text())
    text = path.read_text()
    assert replace_block(text, render_block(path, merged)) == text


def test_every_framework_is_in_it():
    """A module for a framework without a tested row, a page, a picture, would be missed."""
    merged = json.loads(RESULTS.read_text())
    pages = {run["page"] for groups in merged.values() for run in groups.values()}
    modules = {name.rpartition(".")[2] for name in TARGETS if ".frameworks." in name}
    assert [
        name for name in modules if not any(f"{name}_".startswith(f"{p}_") for p in pages)
    ] == []
    for page in pages:
        assert (ROOT / "docs" / "frameworks" / f"{page}.md").is_file()
        assert (ROOT / "docs" / "images" / "frameworks" / f"{page}.svg").is_file()


def test_groups_are_merged():
    """A framework's groups beside each other."""
    told = {"python": "3.11", "frameworks": {"B": {"page": "b"}, "a": {"page": "a"}}}
    merged = merge({"one": told, "two": told})
    assert list(merged) == ["a", "B"]
    assert list(merged["a"]) == ["one", "two"]
