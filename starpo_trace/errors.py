"""Errors that `starpo_trace` raises to people (never into an instrumented agent)."""


class StarpoTraceError(Exception):
    """Root of every error that `starpo_trace` raises on purpose."""


class ConfigError(StarpoTraceError, ValueError):
    """A setting has a value that cannot be used."""


class StoreError(StarpoTraceError, OSError):
    """The local trace store cannot be opened or written."""


class SourceError(StarpoTraceError, ValueError):
    """A span source does not exist, is empty, or holds nothing readable."""


class DatasetError(StarpoTraceError, ValueError):
    """A dataset cannot be built, written or read."""
