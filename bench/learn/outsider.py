"""A process in TRL's environment that trains when it is asked to; see `outsiders.py`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from learn.bases import TINY
from learn.methods import Method

FORMS = {
    "sft": ["--as", "trl", "--min-reward", "0.5"],
    "dpo": ["--as", "trl-pairs"],
    "kto": ["--as", "trl-kto", "--desirable-from", "0.5"],
}
"""What `starpo-trace write` is told for each trainer."""


class Outsider:
    """Started when it is first needed."""

    def __init__(self, python: Path, log: Path) -> None:
        self._python, self._log = python, log
        self._process: subprocess.Popen[str] | None = None

    def train(
        self, method: Method, *, folder: Path, base: Path, dataset: Path, seed: int, epochs: int
    ) -> tuple[Path | None, dict[str, Any]]:
        """As `cells.train_cell`."""
        kind = str(method.trl)
        data = folder / f"{kind}.jsonl"
        written = subprocess.run(
            [
                Path(sys.executable).parent / "starpo-trace",
                "write",
                dataset,
                "-o",
                data,
                *FORMS[kind],
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if written.returncode or not data.exists() or not data.stat().st_size:
            return None, {"refused": (written.stderr or written.stdout).strip()}
        answer = self._ask(
            {
                "kind": kind,
                "data": str(data),
                "model": str(base),
                "output": str(folder / "run"),
                "seed": seed,
                "settings": {
                    "num_train_epochs": epochs,
                    "per_device_train_batch_size": TINY.trajectories_per_step,
                    "learning_rate": method.learning_rate,
                    "lr_scheduler_type": "cosine",
                    "max_length": 1024,
                    **method.train,
                },
            }
        )
        data.unlink()
        if "error" in answer:
            return None, {"failed": answer["error"]}
        return folder / "run", {"steps": answer["steps"], "rows": answer["rows"]}

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [self._python, Path(__file__).with_name("outsiders.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log.open("a"),
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            return {"error": f"TRL's process ended; see {self._log}"}
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
