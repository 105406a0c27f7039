"""Fills the matrix of frameworks from the outcomes of their tests: `--matrix FILE`."""

import json
import platform
from pathlib import Path

import pytest
import scenario
from matrix import FEATURES, Outcomes

_OUTCOMES = pytest.StashKey[Outcomes]()


def pytest_addoption(parser):
    parser.addoption("--matrix", type=Path, help="write what each framework showed to this file")


def pytest_configure(config):
    config.addinivalue_line("markers", "shows(*features): the test shows these of its framework")
    config.addinivalue_line("markers", "pictured: the framework's page has a picture of its run")
    config.stash[_OUTCOMES] = Outcomes()


def pytest_collection_modifyitems(items):
    for item in items:
        unknown = {f for mark in item.iter_markers("shows") for f in mark.args} - set(FEATURES)
        if unknown:
            raise pytest.UsageError(f"{item.nodeid} shows no such features: {sorted(unknown)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    framework = getattr(item.module, "FRAMEWORK", None)
    is_outcome = report.when == "call" or (report.when == "setup" and not report.passed)
    if framework is not None and is_outcome:
        outcomes = item.config.stash[_OUTCOMES]
        features = [f for mark in item.iter_markers("shows") for f in mark.args]
        outcomes.add(framework, features, report.outcome)
        if report.passed and item.get_closest_marker("pictured") is not None:
            outcomes.add_tree(framework, scenario.describe_spans(scenario.LAST[0]))
    return report


def pytest_sessionfinish(session):
    path = session.config.getoption("--matrix")
    if path is not None:
        told = {
            "python": platform.python_version(),
            "frameworks": session.config.stash[_OUTCOMES].frameworks,
        }
        path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
