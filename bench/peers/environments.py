"""Pinned requirements -> virtual environments, made once and kept; instrumented child processes."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.setups import SETUPS, Setup

HERE = Path(__file__).parent
BENCH, ROOT = HERE.parent, HERE.parent.parent
DEFAULT_CACHE = Path.home() / ".cache" / "starpo-bench"


def prepare_environment(name: str, cache: Path, *, pins: Path = HERE) -> Path:
    """Python of an environment with exactly the pinned requirements, made when it is not there."""
    requirements = pins / f"{name}.txt"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    folder, python = cache / name, cache / name / "bin" / "python"
    marker = folder / ".requirements-sha256"
    if marker.exists() and marker.read_text() == wanted:
        return python
    print(f"making the environment {folder} ...", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "-r", requirements], check=True)
    marker.write_text(wanted)
    return python


def read_pins(name: str) -> dict[str, str]:
    """Package -> version of an environment."""
    lines = (HERE / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==", 1) for line in lines if line and not line.startswith("#"))


def build_variables(setup: Setup) -> dict[str, str]:
    """Environment variables of a child: few, and the same in every run."""
    variables = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    # Ours runs from this checkout, so that what is measured is what lies beside this file.
    paths = [BENCH, ROOT] if setup.environment == "ours" else [BENCH]
    variables["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    variables["PYTHONHASHSEED"] = "0"
    return {**variables, **setup.variables}


class Child:
    """A process of one setup that runs blocks of calls on request."""

    def __init__(
        self, name: str, cache: Path, *, prefix: tuple[str, ...] = (), layout: int = 0
    ) -> None:
        """`prefix` is the command line to run Python under; `layout` shifts its memory."""
        self.name = name
        setup = SETUPS[name.partition("@")[0]]
        environment = name.partition("@")[2] or setup.environment
        command = [*prefix, prepare_environment(environment, cache), "-m", "peers.child"]
        command += [name.partition("@")[0], *(["callgrind"] if prefix else [])]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the child)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**build_variables(setup), "LAYOUT": str(layout)},
            text=True,
        )

    def run_block(self, row: str, num_calls: int, **options: Any) -> dict[str, Any]:
        """Run a block of calls; what the child says of it."""
        request = {"row": row, "num_calls": num_calls, **options}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} died in {row}:\n{self._read_errors()}")
        answer = json.loads(line)
        wanted = 0 if self.name.startswith("none") else num_calls
        if not wanted <= answer["num_spans"] <= wanted + 1:  # one more: a trajectory's own
            raise SystemExit(
                f"{self.name} made {answer['num_spans']} spans of {num_calls} calls in {row}:\n"
                f"{self._read_errors()}"
            )
        return answer

    def close(self) -> None:
        """Let the process end."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _read_errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-3000:]
