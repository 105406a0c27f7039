"""Evaluations, verdict, runs, dataset -> one self-contained HTML page."""

from starpo_train.report.page import PolicyResult, render_report

__all__ = ["PolicyResult", "render_report"]
