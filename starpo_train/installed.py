"""Which starpo this is."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Version of the installed distribution; "unknown" in a bare source tree."""
    try:
        return version("starpo")
    except PackageNotFoundError:
        return "unknown"
