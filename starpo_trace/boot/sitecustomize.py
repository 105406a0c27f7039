"""A program that `starpo-trace run` starts -> the same program, recorded.

Python imports this before the program's first line, because the folder comes first on PYTHONPATH.
The program's own `sitecustomize` follows as it would have. Whatever goes wrong here is one line on
stderr.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _step_back() -> None:
    """Take the folder of this file off the path, so that the program sees its own."""
    folder = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (pathlib is slow)
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    if os.environ.get("STARPO_RUN_CHILDREN") == "0":
        entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        left = os.pathsep.join(entry for entry in entries if entry != folder)
        os.environ.pop("PYTHONPATH", None)
        if left:
            os.environ["PYTHONPATH"] = left
        del os.environ["STARPO_RUN_CHILDREN"]


def _import_own() -> None:
    """Import the `sitecustomize` that this one stands before."""
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = sys.modules["sitecustomize"] = module_from_spec(spec)
        spec.loader.exec_module(module)


def _start_recording() -> None:
    store = os.environ.get("STARPO_RUN_STORE")
    is_child = os.environ.get("STARPO_RUN_PID") != str(os.getpid())
    if "STARPO_RUN_CHILDREN" not in os.environ:
        for name in ("STARPO_RUN_STORE", "STARPO_RUN_PID"):
            os.environ.pop(name, None)
    try:
        from starpo_trace.capture.switch import instrument

        instrument(store=store)
    except ModuleNotFoundError as error:
        if not is_child:  # a child may be another Python, which has no Starpo
            print(f"starpo-trace run: nothing is recorded: {error}", file=sys.stderr)  # noqa: T201
    except Exception as error:  # noqa: BLE001 (the program runs, recorded or not)
        print(f"starpo-trace run: nothing is recorded: {error}", file=sys.stderr)  # noqa: T201


_step_back()
try:
    _import_own()
finally:
    _start_recording()
