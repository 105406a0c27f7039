"""Words of a command line -> values."""

from argparse import ArgumentTypeError
from pathlib import Path


def parse_path(text: str) -> Path:
    """Word -> path; an empty one is a shell variable that is not set, and not the current folder.

    Raises:
        ArgumentTypeError: it is empty.
    """
    if not text:
        raise ArgumentTypeError("is empty; name a file or folder (is a shell variable not set?)")
    return Path(text)


def parse_source(text: str) -> str:
    """Word -> path or URL of what is exported.

    Raises:
        ArgumentTypeError: it is empty.
    """
    parse_path(text)
    return text
