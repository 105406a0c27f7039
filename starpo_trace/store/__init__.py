"""Spans -> disk or OTLP endpoint: acknowledged means written, every drop is counted."""
