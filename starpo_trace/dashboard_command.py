"""`starpo-trace dashboard`: the Grafana dashboard, or the Prometheus alerts, on stdout."""

import argparse
import sys
from typing import Any


def add_dashboard_command(commands: Any) -> None:
    """Add `dashboard` to the commands of `starpo-trace`."""
    parser = commands.add_parser(
        "dashboard",
        help="print a Grafana dashboard for the agent's metrics, or alerts for Prometheus",
        description="Prints the dashboard's JSON, to be imported into Grafana; docs/live.md says "
        "how the metrics get there.",
    )
    parser.add_argument(
        "--alerts", action="store_true", help="print the rules file for Prometheus instead"
    )
    parser.set_defaults(command=_print)


def _print(options: argparse.Namespace) -> int:
    from starpo_trace.grafana.build import ALERTS_FILE, DASHBOARD_FILE

    file = ALERTS_FILE if options.alerts else DASHBOARD_FILE
    sys.stdout.write(file.read_text(encoding="utf-8"))
    return 0
