"""Evaluations, verdict, runs, dataset -> one self-contained HTML page."""

from starpo_train.report.inputs import PolicyResult, ReportExtras, check_trace_link
from starpo_train.report.page import render_report

__all__ = ["PolicyResult", "ReportExtras", "check_trace_link", "render_report"]
