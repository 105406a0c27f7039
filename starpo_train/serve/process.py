"""A model server in a process of its own."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import orjson

from starpo_train.errors import ServerError

_LOG_TAIL_LINES = 20
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 10.0


class ServerProcess:
    """Starts `python -m starpo_train.serve` and waits until it answers; stops it at the end.

    >>> with ServerProcess("checkpoints/step_000100") as server:  # doctest: +SKIP
    ...     client = openai.OpenAI(base_url=server.base_url, api_key="none")

    Raises:
        ServerError: the server died or did not answer in time; the message ends with its log.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        threads: int = 1,
        max_batch: int = 32,
        log_path: Path | None = None,
        start_timeout_s: float = _START_TIMEOUT_S,
    ) -> None:
        self.model = str(model_path)
        self._threads = threads
        self._max_batch = max_batch
        self._log_path = log_path
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.base_url = ""
        """`http://host:port/v1` once started."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="starpo-serve-")
        folder = Path(self._folder.name)
        self._log_path = self._log_path or folder / "server.log"
        ready_file = folder / "ready.json"
        command = [
            *(sys.executable, "-m", "starpo_train.serve", self.model, "--port", "0"),
            *("--threads", str(self._threads), "--max-batch", str(self._max_batch)),
            *("--ready-file", str(ready_file), "--exit-with-parent"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        try:
            self._wait(ready_file)
        except BaseException:
            self._stop()
            raise
        address = orjson.loads(ready_file.read_bytes())
        self.base_url = f"http://{address['host']}:{address['port']}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def process_id(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise ServerError("the server is not running: use ServerProcess in a with statement")
        return self._process.pid

    def check(self) -> None:
        """Raise `ServerError` if the server is gone."""
        code = self._process.poll() if self._process is not None else None
        if code is not None:
            last = self._log_tail().rpartition("\n")[2]
            if last.startswith("error: "):  # the server's own word on it, in one line
                raise ServerError(
                    f"the server for {self.model!r} ended with code {code}: "
                    f"{last.removeprefix('error: ')}"
                )
            raise ServerError(
                f"the server for {self.model!r} ended with code {code}; its log ends with:\n"
                f"{self._log_tail()}"
            )

    def _wait(self, ready_file: Path) -> None:
        deadline_s = time.monotonic() + self._start_timeout_s
        while not ready_file.exists():
            self.check()
            if time.monotonic() > deadline_s:
                raise ServerError(
                    f"the server for {self.model!r} did not answer within "
                    f"{self._start_timeout_s:g} s; its log ends with:\n{self._log_tail()}"
                )
            time.sleep(0.05)

    def _log_tail(self) -> str:
        assert self._log_path is not None  # noqa: S101
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._folder is not None:
            self._folder.cleanup()
