"""What an evaluation file says of its environment -> the environment.

module:attribute    file.py:attribute    gymnasium:ID    inspect:TASK    verifiers:TASKSET
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from starpo_train.errors import RolloutError

_FORMS = "module:attribute, file.py:attribute, gymnasium:ID, inspect:TASK or verifiers:TASKSET"
_NEEDED = ("name", "version", "tasks")


def load_environment(spec: str, args: Mapping[str, Any]) -> Any:
    """Import an `Environment` or `OwnLoop` and make it with `args`.

    Raises:
        RolloutError: there is none of that name, it cannot be made, or it lacks a method.
    """
    where = f"evaluate.environment = {spec!r}"
    kind, _, name = spec.partition(":")
    if not kind or not name:
        raise RolloutError(f"{where}: write {_FORMS}")
    found = _ADAPTERS[kind](name) if kind in _ADAPTERS else find_attribute(spec, where=where)
    if isinstance(found, type) or not hasattr(found, "tasks"):
        try:
            found = found(**args)
        except RolloutError:
            raise
        except Exception as error:
            raise RolloutError(
                f"{where}: cannot be made with environment_args = {dict(args)}: {error!r}"
            ) from error
    elif args:
        raise RolloutError(
            f"{where}: is an object already, so environment_args = {dict(args)} go nowhere; name "
            "the class or function that makes it"
        )
    lacks = [each for each in _NEEDED if not hasattr(found, each)]
    if not (hasattr(found, "start") or hasattr(found, "play_runs")):
        lacks.append("start")
    if lacks:
        raise RolloutError(
            f"{where}: {type(found).__name__} has no `{lacks[0]}`; an environment has name, "
            "version, tasks(split, count, seed) and start(task, seed)"
        )
    return found


def import_file(path: Path, where: str) -> ModuleType:
    """Import a Python file; its folder joins `sys.path`, as when it is run.

    Raises:
        RolloutError: no such file, or it fails to import; `where` opens the message.
    """
    if not path.is_file():
        raise RolloutError(f"{where}: no such file: {path}")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise RolloutError(f"{where}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickles look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RolloutError(f"{where}: {path} fails to import: {error!r}") from error
    return module


def find_attribute(spec: str, *, where: str) -> Any:
    """`module:attribute` or `file.py:attribute` -> the object.

    Raises:
        RolloutError: there is no such thing; `where` opens the message.
    """
    kind, _, name = spec.rpartition(":")
    if kind.endswith(".py"):
        module = import_file(Path(kind), where)
    else:
        try:
            module = importlib.import_module(kind)
        except Exception as error:
            raise RolloutError(
                f"{where}: the module {kind!r} fails to import: {error!r}; write {_FORMS}"
            ) from error
    found = getattr(module, name, None)
    if found is None:
        raise RolloutError(f"{where}: {kind} has no {name!r}")
    return found


def _gymnasium(name: str) -> Callable[..., Any]:
    from starpo_train.environments.text_games import GymnasiumEnvironment

    return lambda **args: GymnasiumEnvironment(name, **args)


def _inspect(name: str) -> Callable[..., Any]:
    from starpo_train.environments.inspect_tasks import InspectEnvironment

    return lambda **args: InspectEnvironment(name, **args)


def _verifiers(name: str) -> Callable[..., Any]:
    from starpo_train.environments.verifiers_tasks import VerifiersEnvironment

    return lambda **args: VerifiersEnvironment(name, **args)


_ADAPTERS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "gymnasium": _gymnasium,
    "inspect": _inspect,
    "verifiers": _verifiers,
}
