"""Span files -> trajectory dataset: sources, dialects, trees, tables, manifest."""
