"""Framed records -> segment files of one folder: rotation, quota, and what a refusal needs."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from starpo_trace.guard import report_failure
from starpo_trace.store.files import REAL_FILES, Files
from starpo_trace.store.segments import MAGIC, OPEN_SUFFIX, SUFFIX, SegmentWriter

_MEASURE_EVERY_S: Final = 1.0


class StoreFull(Exception):  # noqa: N818 (a condition, as in `queue.Full`)
    """The folder holds as many bytes as it may."""


class SegmentedStore:
    """The store's one writer. Not thread-safe: it belongs to its sink's writer thread."""

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int,
        segment_age_s: float,
        max_bytes: int,
        files: Files = REAL_FILES,
    ) -> None:
        """`max_bytes` counts all segments of the folder, those of other processes too.

        Other processes' files are looked at once a second, so together they may exceed it by what
        they write in a second.
        """
        self.directory = directory
        self._segment_bytes = segment_bytes
        self._segment_age_s = segment_age_s
        self._max_bytes = max_bytes
        self._files = files
        self._segment: SegmentWriter | None = None
        self._num_used_bytes = 0
        self._measured_s: float | None = None
        self._unsynced_folders: set[Path] | None = None
        """Folders that must be synced before the store's own can count on being found again."""

    def append(self, record: bytes) -> None:
        """Write one record; on return it is on disk.

        Raises:
            OSError: it is not. The segment was given up: the next record goes to a new one.
            StoreFull: there is no room below `max_bytes`.
        """
        self.check_room(len(record))
        try:
            segment = self._segment
            if segment is None:
                self._make_folder()
                segment = self._segment = SegmentWriter(self.directory, files=self._files)
                self._num_used_bytes += len(MAGIC)
            segment.append(record)
        except OSError:
            self.seal()
            self._measured_s = None
            raise
        self._num_used_bytes += len(record)
        if segment.num_bytes >= self._segment_bytes or self.seal_in_s() <= 0:
            self.seal()

    def check_room(self, num_bytes: int) -> None:
        """Compare what the folder holds with what it may.

        Raises:
            StoreFull: so many bytes more are too many.
        """
        now_s = time.monotonic()
        if self._measured_s is None or now_s - self._measured_s > _MEASURE_EVERY_S:
            self._num_used_bytes = self._files.measure_segments(
                self.directory, (SUFFIX, OPEN_SUFFIX)
            )
            self._measured_s = now_s
        num_new = num_bytes + (len(MAGIC) if self._segment is None else 0)
        if self._num_used_bytes + num_new > self._max_bytes:
            raise StoreFull

    def _make_folder(self) -> None:
        if self._unsynced_folders is None:  # what a process before us made, and did not sync
            self._unsynced_folders = {self.directory.parent, self.directory.parent.parent}
        missing: list[Path] = []
        folder = self.directory
        while not self._files.is_directory(folder):
            missing.append(folder)
            folder = folder.parent
        for each in reversed(missing):
            self._unsynced_folders.add(each.parent)
            self._files.make_directory(each)
        for each in sorted(self._unsynced_folders):
            with suppress(PermissionError):  # then somebody else made what is in it
                self._files.sync_directory(each)
            self._unsynced_folders.discard(each)

    def seal_in_s(self) -> float:
        """Time until the open segment has its age."""
        if self._segment is None:
            return 3600.0
        return max(0.0, self._segment.created_s + self._segment_age_s - time.monotonic())

    def seal(self) -> None:
        """Close the open segment, if any."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        try:
            segment.seal()
        except OSError as error:  # it stays readable under its `.open` name
            report_failure("sealing a trace segment", error)

    def abandon(self) -> None:
        """Leave the open segment to the process that this one was forked from."""
        segment, self._segment = self._segment, None
        self._measured_s = None
        if segment is not None:
            segment.abandon()
