"""TOML file <-> a frozen dataclass of dataclasses. An unknown key is an error that names the nearest known one."""

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from starpo_train.errors import ConfigError
from starpo_train.modelfolder import resolve_model

ConfigT = TypeVar("ConfigT")


def read_config(path: Path, cls: type[ConfigT], *, kind: str = "run file") -> ConfigT:
    """TOML file -> a frozen dataclass whose fields are dataclasses, one per TOML table.

    `kind` is what errors call the file.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {kind}.") from None
    except OSError as error:
        raise ConfigError(f"{path}: the {kind} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}.") from None
    _reject_unknown_keys(cls, values, where="", source=path)
    return _build(cls, values, where="", folder=path.resolve().parent, source=path)


def write_config(config: Any, path: Path) -> None:
    """Every value of a config dataclass -> TOML that `read_config` reads back equal."""
    lines = ["# Every setting of this run, defaults included."]
    for section in dataclasses.fields(config):
        lines += ["", f"[{section.name}]"]
        values = getattr(config, section.name)
        for option in dataclasses.fields(values):
            value = getattr(values, option.name)
            if value is not None:
                lines.append(f"{_key(option.name)} = {_toml_value(value)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def to_json_dict(config: Any) -> dict[str, Any]:
    """Config dataclass -> plain dict for JSON; paths become strings."""
    plain = dataclasses.asdict(config)
    return json.loads(json.dumps(plain, default=str))


def _reject_unknown_keys(cls: Any, values: Any, *, where: str, source: Path) -> None:
    """Before anything else is complained about: a typo often explains what seems missing."""
    hints = typing.get_type_hints(cls)
    known = {_key(each.name): _not_none(hints[each.name]) for each in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(_unknown_key(source, where, key, list(known)))
        if dataclasses.is_dataclass(known[key]) and isinstance(value, dict):
            inner = f"{where}.{key}" if where else key
            _reject_unknown_keys(known[key], value, where=inner, source=source)


def _build(cls: Any, values: Any, *, where: str, folder: Path, source: Path) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: {where} = {values!r}: must be a table, [{where}].")
    hints = typing.get_type_hints(cls)
    options = {_key(option.name): option for option in dataclasses.fields(cls)}
    built = {}
    for key, option in options.items():
        inner = f"{where}.{key}" if where else key
        required = (
            option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING
        )
        if key in values or (required and dataclasses.is_dataclass(hints[option.name])):
            value = values.get(key, {})
            built[option.name] = _convert(
                hints[option.name], value, where=inner, folder=folder, source=source
            )
        elif required:
            raise ConfigError(f"{source}: {inner} is missing; write `{key} = ...` in [{where}].")
    try:
        return cls(**built)
    except ConfigError as error:  # a value out of range: the file is known here only
        raise ConfigError(f"{source}: {error}") from None


def _convert(hint: Any, value: Any, *, where: str, folder: Path, source: Path) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where=where, folder=folder, source=source)
    if _not_none(hint) is not hint:
        return _convert(_not_none(hint), value, where=where, folder=folder, source=source)
    accepted, expected = _check(hint, value)
    if not accepted:
        raise ConfigError(f"{source}: {where} = {value!r}: must be {expected}.")
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    if hint is Path:
        return (folder / Path(value).expanduser()).resolve()
    if where in ("model.path", "evaluate.model"):
        return resolve_model(value, folder=folder)
    return float(value) if hint is float else value


def _not_none(hint: Any) -> Any:
    """`X | None` -> X."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(each for each in typing.get_args(hint) if each is not type(None))
    return hint


def _check(hint: Any, value: Any) -> tuple[bool, str]:
    """Whether a TOML value fits a type, and what would, in words."""
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        return value in choices, " | ".join(map(str, choices))
    if typing.get_origin(hint) is tuple:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return fits, "a list of strings"
    if typing.get_origin(hint) is Mapping:
        return isinstance(value, dict), "a table"
    if isinstance(value, bool):
        return hint is bool, _IN_WORDS[hint]
    if isinstance(value, float) and math.isnan(value):
        return False, "a number"
    allowed = {float: (int, float), Path: (str,)}.get(hint, (hint,))
    return isinstance(value, allowed), _IN_WORDS[hint]


_IN_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a path",
}


def _unknown_key(source: Path, where: str, key: str, known: list[str]) -> str:
    name = f"{where}.{key}" if where else f"[{key}]"
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(sorted(known))}."
    return f"{source}: unknown key {name}; {hint}"


def _key(name: str) -> str:
    return name.rstrip("_")  # lambda_ -> lambda


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Path | str):
        return json.dumps(str(value), ensure_ascii=False)  # JSON strings are TOML basic strings
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)
