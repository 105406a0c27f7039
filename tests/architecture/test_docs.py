"""The documents name what exists."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

from starpo_trace import semconv

ROOT = Path(__file__).parents[2]


def documented_keys(text: str) -> set[str]:
    """Every key in backticks; `.suffix` continues the family of the last full key in its row."""
    keys: set[str] = set()
    for line in text.splitlines():
        family = ""
        for name in re.findall(r"`([\w.]+)`", line):
            if name.startswith(".") and family:
                keys.add(family + name)
            else:
                keys.add(name)
                parts = name.split(".")
                family = ".".join(parts[:3] if name.startswith("gen_ai.tool.call") else parts[:2])
    return keys


def test_every_span_key_is_in_the_table():
    """A key that the code writes is explained in docs/spans.md."""
    table = documented_keys((ROOT / "docs" / "spans.md").read_text())
    keys = {
        value
        for name, value in vars(semconv).items()
        if name.isupper() and isinstance(value, str) and "." in value
    }
    assert sorted(keys - table) == []


def test_every_metric_is_in_the_table():
    """docs/live.md names the instruments that the code makes, with their units."""
    code = (ROOT / "starpo_trace" / "capture" / "instruments.py").read_text()
    made = set(re.findall(r'"((?:starpo|gen_ai)\.[a-z_.]+)"', code))
    rows = [
        line
        for line in (ROOT / "docs" / "live.md").read_text().splitlines()
        if re.match(r"\| `(starpo|gen_ai)\.", line)
    ]
    told = {name for line in rows for name in re.findall(r"`([\w.]+)`", line.split("|")[1])}
    assert made == told


def test_every_import_in_the_documents_works():
    """Names that Python blocks of README and docs import from our packages exist."""
    missing = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("starpo_"):
                    module = importlib.import_module(node.module or "")
                    names = [alias.name for alias in node.names]
                    missing += [f"{page.name}: {n}" for n in names if not hasattr(module, n)]
    assert missing == []


def test_relative_links_in_the_documents_lead_somewhere():
    """README and docs link only to files that exist."""
    dead = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        targets = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text())
        dead += [f"{page.name}: {t}" for t in targets if not (page.parent / t).exists()]
    assert dead == []


def test_every_file_of_the_architecture_picture_exists():
    """The picture of the data's way names real files."""
    picture = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    names = set(re.findall(r"[a-z_]+\.py", picture))
    exist = {
        path.name
        for package in ("starpo_trace", "starpo_train")
        for path in (ROOT / package).rglob("*.py")
    }
    assert sorted(names - exist) == []


def test_every_setting_is_documented():
    """Each key of the run, evaluation and gate files has a row in docs/configuration.md."""
    from starpo_train import config, rollout
    from starpo_train.environments.endpoint import Sampling
    from starpo_train.evaluation_file import EndpointSection
    from starpo_train.gate import GateConfig

    page = (ROOT / "docs" / "configuration.md").read_text()
    sections = [
        *[config.RunSection, config.DataSection, config.ModelSection, config.AlgorithmSection],
        *[config.TrainSection, config.DiagnosticsSection, rollout.EvaluateSection, GateConfig],
        *[EndpointSection, Sampling],
    ]
    keys = [field.name.rstrip("_") for cls in sections for field in dataclasses.fields(cls)]
    assert [key for key in keys if f"| `{key}` |" not in page] == []


def test_every_reason_is_documented():
    """Each reason that a trajectory may have is in docs/spans.md, under what it leaves possible."""
    from starpo_trace.convert import verdict

    rows = re.findall(
        r"^\| `(none|sft|rl)` \| (.*) \|$", (ROOT / "docs" / "spans.md").read_text(), re.M
    )
    documented = {best: set(re.findall(r"`(\w+)`", text)) for best, text in rows}
    assert documented == {
        "none": set(verdict.NOT_EVEN_SFT),
        "sft": set(verdict.NOT_RL),
        "rl": set(verdict.INFORMATION),
    }
