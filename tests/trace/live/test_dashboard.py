"""The files that `starpo-trace dashboard` prints: what is built, valid for Grafana and Prometheus."""

import json
import subprocess
from pathlib import Path

import pytest
from prometheus_server import find_binary

from starpo_trace.cli import main
from starpo_trace.grafana.build import ALERTS_FILE, DASHBOARD_FILE, build_dashboard, write_dashboard


def test_the_file_is_what_is_built():
    """After a change run `python -m starpo_trace.grafana.build`."""
    assert DASHBOARD_FILE.read_text() == write_dashboard()


def test_the_command_prints_the_files(capsys):
    """The dashboard, or with --alerts the rules."""
    assert main(["dashboard"]) == 0
    assert json.loads(capsys.readouterr().out) == build_dashboard()
    assert main(["dashboard", "--alerts"]) == 0
    assert capsys.readouterr().out == ALERTS_FILE.read_text()


def test_panels_lie_beside_each_other():
    """No two overlap or leave the 24 columns, and ids are their own."""
    panels = build_dashboard()["panels"]
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def drop_defaults(told, given):
    """What Grafana's model writes -> only what the file says too, so that defaults do not count."""
    if isinstance(given, dict):
        return {key: drop_defaults(told[key], value) for key, value in given.items() if key in told}
    if isinstance(given, list):
        return [drop_defaults(a, b) for a, b in zip(told, given, strict=True)]
    return told


def test_grafanas_own_model_knows_every_field():
    """Read and written by Grafana's SDK nothing is lost: an unknown field would be."""
    dashboard = pytest.importorskip(
        "grafana_foundation_sdk.models.dashboard", reason="grafana-foundation-sdk is not installed"
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    given = build_dashboard()
    told = json.loads(json.dumps(dashboard.Dashboard.from_json(given), cls=JSONEncoder))
    assert drop_defaults(told, given) == given
    given["panels"][1]["fieldConfigs"] = given["panels"][1].pop("fieldConfig")  # misspelt
    told = json.loads(json.dumps(dashboard.Dashboard.from_json(given), cls=JSONEncoder))
    assert drop_defaults(told, given) != given


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", str(ALERTS_FILE)],
        ["test", "rules", str(Path(__file__).with_name("alerts_test.yml"))],
    ],
    ids=["check", "test"],
)
def test_promtool_accepts_the_alerts(arguments):
    """Prometheus' own tool parses them and finds every alert where it should be, and nowhere else."""
    done = subprocess.run(
        [find_binary("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "FAILED" in done.stdout + done.stderr) == (0, False), done.stderr
