"""A file that is there whole or not at all, and a place for what is needed until it is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from starpo_trace.errors import ConfigError
from starpo_trace.mergepatch import load_json
from starpo_trace.messages import dump_json


@contextmanager
def replace_whole(output: Path) -> Iterator[Path]:
    """Path of a file -> a path beside it to write to, which takes its place at the end.

    Raises:
        ConfigError: the folder or the disk refuses it, or the output is a folder.
    """
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name a file in it")
    if not output.parent.is_dir():
        raise ConfigError(f"{output}: cannot be written (no folder {output.parent}; make it first)")
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(output)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # where nothing can be written, nothing can be removed either
            temporary.unlink()


@dataclass(slots=True, kw_only=True)
class Spool:
    """JSON values on disk, found again by a number; gone with the process."""

    file: IO[bytes]
    """Where they are."""
    offsets: list[int] = field(default_factory=list)
    """Where each begins."""

    def add(self, value: Any) -> int:
        """Value -> its number."""
        self.offsets.append(self.file.seek(0, os.SEEK_END))
        self.file.write(dump_json(value).encode() + b"\n")
        return len(self.offsets) - 1

    def read(self, number: int) -> Any:
        """Number -> the value."""
        self.file.seek(self.offsets[number])
        return load_json(self.file.readline().decode())


@contextmanager
def open_spool(output: Path) -> Iterator[Spool]:
    """A spool beside an output, where there is space for it.

    Raises:
        ConfigError: the folder or the disk refuses it.
    """
    try:
        with TemporaryFile(dir=output.parent) as file:
            yield Spool(file=file)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror or error})") from error
