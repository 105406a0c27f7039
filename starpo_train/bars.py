"""Columns -> a progress bar that is drawn while a context is open."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


class BarDisplay:
    """A bar, and a console for what is said beside it."""

    def __init__(self, console: Console | None, *columns: ProgressColumn) -> None:
        self._console = console or Console(highlight=False)
        self._bar = Progress(*columns, console=self._console)

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop drawing, whatever happened."""
        self._bar.stop()


class StageDisplay(BarDisplay):
    """A bar over the items of one stage after another."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(
            console,
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("start", total=None, note="")

    def show_stage(self, stage: str, *, num_done: int, num_all: int, note: str) -> None:
        """How far a stage is; `num_all` 0 while that is not known."""
        self._bar.update(
            self._task, description=stage, total=num_all or None, completed=num_done, note=note
        )
