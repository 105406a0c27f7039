"""What groups of frameworks showed -> the matrix in the README, its file of figures, the pages' pictures.

    python tests/frameworks/publish.py .venvs/frameworks/*.json

Cells are outcomes of tests. `make matrix` runs all tests, then this.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from matrix import FEATURES
from packaging.version import Version
from picture import draw_tree

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "bench" / "results" / "frameworks.json"
TABLES: Final = {
    ROOT / "README.md": "docs/frameworks/",
    ROOT / "docs" / "frameworks" / "README.md": "",
}
"""File with the table -> where the frameworks' pages are from there."""
PICTURES: Final = ROOT / "docs" / "images" / "frameworks"
_BEGIN: Final = "<!-- frameworks: made by `make matrix` -->"
_END: Final = "<!-- /frameworks -->"
_MARKS: Final = {"shown": "✓", "newest": "newest", "failed": "**fails**", "exempt": "n/a", "": "·"}


def merge(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Group -> what it showed; turned into framework -> group -> what it showed there."""
    merged: dict[str, Any] = {}
    for group, told in groups.items():
        for name, framework in told["frameworks"].items():
            merged.setdefault(name, {})[group] = framework | {"python": told["python"]}
    return dict(sorted(merged.items(), key=lambda item: item[0].lower()))


def judge(runs: Iterable[Mapping[str, Any]], feature: str) -> str:
    """Runs of one framework, the newest version first -> what its cell says."""
    verdicts = []
    for run in runs:
        counts = run["cells"].get(feature, {"passed": 0, "failed": 0})
        if counts["failed"]:
            return "failed"
        is_exempt = feature in run["exempt"]
        verdicts.append("shown" if counts["passed"] else "exempt" if is_exempt else "")
    if set(verdicts) == {verdicts[0]}:
        return verdicts[0]
    return "newest" if verdicts[0] == "shown" else ""


def order_runs(groups: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups of a framework -> its runs, the newest first."""

    def read_version(run: Mapping[str, Any]) -> Version:
        return Version(next(iter(run["versions"].values())))

    return sorted(groups.values(), key=read_version, reverse=True)


def render_table(merged: Mapping[str, Any], pages: str) -> str:
    """Merged results -> Markdown; `pages` is the path to the frameworks' pages."""
    lines = [
        f"| | oldest tested | newest tested | {' | '.join(FEATURES)} | tests |",
        f"|---|---|---|{'---|' * len(FEATURES)}---|",
    ]
    for name, groups in merged.items():
        runs = order_runs(groups)
        newest, oldest = runs[0], runs[-1]
        cells = [_MARKS[judge(runs, feature)] for feature in FEATURES]
        passed = sum(run["tests"]["passed"] for run in runs)
        failed = sum(run["tests"]["failed"] for run in runs)
        told = f"{passed}" if not failed else f"{passed}, **{failed} fail**"
        link = f"[{name}]({pages}{newest['page']}.md)"
        old = "" if oldest["versions"] == newest["versions"] else _tell_versions(oldest)
        row = [link, old, _tell_versions(newest), *cells, told]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _tell_versions(run: Mapping[str, Any]) -> str:
    versions = run["versions"]
    if len(versions) == 1:
        return next(iter(versions.values()))
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def render_exemptions(merged: Mapping[str, Any]) -> str:
    """Merged results -> what each framework does not have, and why."""
    return "\n".join(
        f"- {name}, {feature}: {reason}."
        for name, groups in merged.items()
        for feature, reason in order_runs(groups)[0]["exempt"].items()
    )


def replace_block(text: str, block: str) -> str:
    """Text with the generated block in it replaced."""
    before, rest = text.split(_BEGIN, 1)
    _, after = rest.split(_END, 1)
    return f"{before}{_BEGIN}\n{block}\n{_END}{after}"


def render_block(path: Path, merged: Mapping[str, Any]) -> str:
    """The block of one file: the table, and beside the pages what is exempt."""
    table = render_table(merged, TABLES[path])
    return table if TABLES[path] else f"{table}\n\nn/a:\n\n{render_exemptions(merged)}"


def main(paths: list[str]) -> None:
    """Write everything that is made from the results."""
    merged = merge({Path(path).stem: json.loads(Path(path).read_text()) for path in paths})
    PICTURES.mkdir(parents=True, exist_ok=True)
    for groups in merged.values():
        newest = order_runs(groups)[0]
        if newest["tree"]:
            (PICTURES / f"{newest['page']}.svg").write_text(draw_tree(newest["tree"]))
        for run in groups.values():
            del run["tree"]
    RESULTS.write_text(json.dumps(merged, indent=1, ensure_ascii=False) + "\n")
    for path in TABLES:
        path.write_text(replace_block(path.read_text(), render_block(path, merged)))
    print(f"{len(merged)} frameworks")


if __name__ == "__main__":
    main(sys.argv[1:])
