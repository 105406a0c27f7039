"""The few file operations that the store is built on, so that a bad disk can stand in for them."""

import errno
import os
from pathlib import Path
from typing import Final

# macOS has no fdatasync.
_sync_data = getattr(os, "fdatasync", os.fsync)


class Files:
    """Operations on real files. Each raises OSError when the system refuses."""

    def is_directory(self, path: Path) -> bool:
        """Whether a folder is there."""
        return path.is_dir()

    def make_directory(self, path: Path) -> None:
        """Make one folder, unless it is there."""
        path.mkdir(exist_ok=True)

    def sync_directory(self, path: Path) -> None:
        """Make what was created, renamed or removed in a folder durable."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems
                raise
        finally:
            os.close(descriptor)

    def create(self, path: Path) -> int:
        """Create a file that is not there yet; returns its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write_at(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write some of the data at an offset; returns how many bytes."""
        return os.pwrite(descriptor, data, offset)

    def sync_data(self, descriptor: int) -> None:
        """Make the content of a file durable."""
        _sync_data(descriptor)

    def truncate(self, descriptor: int, length: int) -> None:
        """Cut a file off."""
        os.ftruncate(descriptor, length)

    def is_deleted(self, descriptor: int) -> bool:
        """Whether no name leads to an open file any more."""
        return os.fstat(descriptor).st_nlink == 0

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name in the same folder."""
        path.rename(target)

    def remove(self, path: Path) -> None:
        """Remove a file, unless it is gone."""
        path.unlink(missing_ok=True)

    def measure_segments(self, directory: Path, suffixes: tuple[str, ...]) -> int:
        """Bytes of all files in a folder whose names end so; 0 without the folder."""
        num_bytes = 0
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.endswith(suffixes):
                        try:
                            num_bytes += entry.stat().st_size
                        except OSError:  # removed meanwhile
                            continue
        except FileNotFoundError:
            return 0
        return num_bytes


REAL_FILES: Final = Files()
