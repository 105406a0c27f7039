"""Panels -> the dashboard as Grafana imports it: `python -m starpo_trace.grafana.build`."""

import json
from pathlib import Path
from typing import Any, Final

from starpo_trace.grafana.panels import ROWS, VARIABLES, PanelSpec

DASHBOARD_FILE: Final = Path(__file__).with_name("starpo.json")
ALERTS_FILE: Final = Path(__file__).with_name("alerts.yml")
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_SCHEMA_VERSION: Final = 36
"""The oldest that has all that is used here; a newer Grafana migrates it."""
_HEIGHT: Final = 8


def build_dashboard() -> dict[str, Any]:
    """The dashboard's JSON."""
    return {
        "uid": "starpo-live",
        "title": "Starpo: live agents",
        "description": "Rewards, failed evaluations, steps and tokens of agents' runs.",
        "tags": ["starpo", "agents", "opentelemetry"],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "schemaVersion": _SCHEMA_VERSION,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": _build_variables()},
        "panels": _build_panels(),
    }


def write_dashboard() -> str:
    """The dashboard as text."""
    return json.dumps(build_dashboard(), indent=2) + "\n"


def _build_variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource"}
    everything = {"text": "All", "value": "$__all"}
    chosen = [
        {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": _SOURCE,
            "query": query,
            "refresh": 2,  # whenever the time range changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",  # also runs that name none
            "current": everything,
        }
        for name, query in VARIABLES.items()
    ]
    return [{**source, "query": "prometheus"}, *chosen]


def _build_panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    top = 0
    for title, specs in ROWS.items():
        place = {"h": 1, "w": 24, "x": 0, "y": top}
        row = {"type": "row", "title": title, "collapsed": False, "panels": []}
        panels.append({"id": len(panels) + 1, **row, "gridPos": place})
        top, left = top + 1, 0
        for spec in specs:
            if left + spec.width > 24:
                top, left = top + _HEIGHT, 0
            place = {"h": _HEIGHT, "w": spec.width, "x": left, "y": top}
            panels.append({"id": len(panels) + 1, **_build_panel(spec), "gridPos": place})
            left += spec.width
        top += _HEIGHT
    return panels


def _build_panel(spec: PanelSpec) -> dict[str, Any]:
    is_instant = spec.type in {"stat", "bargauge"}
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": _SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
            "instant": is_instant,
            "range": not is_instant,
            "format": "heatmap" if spec.type == "heatmap" else "time_series",
        }
        for number, query in enumerate(spec.queries)
    ]
    defaults: dict[str, Any] = {"unit": spec.unit}
    if spec.unit == "percentunit":
        defaults |= {"min": 0, "max": 1}
    if spec.is_stacked:
        defaults["custom"] = {"stacking": {"mode": "normal"}, "fillOpacity": 30}
    return {
        "type": spec.type,
        "title": spec.title,
        "description": spec.about,
        "datasource": _SOURCE,
        "targets": targets,
        "options": _OPTIONS[spec.type],
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }


_REDUCE: Final = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "stat": {"reduceOptions": _REDUCE, "colorMode": "value", "graphMode": "none"},
    "bargauge": {"reduceOptions": _REDUCE, "orientation": "horizontal", "displayMode": "basic"},
    "heatmap": {"calculate": False, "yAxis": {"unit": "short"}, "cellGap": 1},
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
}


if __name__ == "__main__":
    DASHBOARD_FILE.write_text(write_dashboard(), encoding="utf-8")
