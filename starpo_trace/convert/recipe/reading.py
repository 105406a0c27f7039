"""TOML file -> Recipe -> what the manifest keeps of it."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
import polars as pl

from starpo_trace.convert.recipe.curation_rules import ExcludeRule, OutlierRule, QuotaRule
from starpo_trace.convert.recipe.expressions import (
    check_condition,
    check_number,
    check_potential,
    check_shaping,
)
from starpo_trace.convert.recipe.reward_rules import RewardRule, ShapingRule
from starpo_trace.convert.recipe.sections import Recipe
from starpo_trace.errors import ConfigError

_NAMED: Final[dict[str, type]] = {
    "rewards": RewardRule,
    "shaping": ShapingRule,
    "quotas": QuotaRule,
    "outliers": OutlierRule,
    "exclude": ExcludeRule,
}
"""Tables that hold a table per name."""
_SECTIONS: Final[dict[str, type]] = {
    each.name: _NAMED.get(each.name) or each.default_factory  # pyright: ignore
    for each in fields(Recipe)
}


def read_recipe(path: Path) -> Recipe:
    """Recipe file -> Recipe.

    Raises:
        ConfigError: no such file, no TOML, an unknown key, a value of the wrong type or range, an
            expression that is none or names an unknown column.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe") from None
    except OSError as error:
        raise ConfigError(f"{path}: the recipe cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    return build_recipe(values, source=str(path))


def build_recipe(values: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """Tables as of TOML or of a manifest -> Recipe, checked.

    Raises:
        ConfigError: as `read_recipe`; `source` is what the error calls the file.
    """
    _refuse_unknown(values, list(_SECTIONS), source, "")
    for name in values:
        if not isinstance(values[name], Mapping):
            raise ConfigError(f"{source}: {name} = {values[name]!r}: must be a table, [{name}]")
    built: dict[str, Any] = {}
    for section, table in values.items():
        kind = _SECTIONS[section]
        if section in _NAMED:
            built[section] = {
                name: _build(kind, entry, source, f"{section}.{name}")
                for name, entry in table.items()
            }
        else:
            built[section] = _build(kind, table, source, section)
    recipe = Recipe(**built)
    check_recipe(recipe, source=source)
    return recipe


def check_recipe(recipe: Recipe, *, source: str = "recipe") -> None:
    """Recipe made in Python or from a file -> nothing, if its expressions can be used.

    Raises:
        ConfigError: one is no expression, or names a column that there is not.
    """
    for name, rule in recipe.shaping.items():
        if rule.expr is not None:
            check_shaping(rule.expr, f"{source}: shaping.{name}.expr")
        else:
            check_potential(rule.potential, f"{source}: shaping.{name}.potential")
    for name, rule in recipe.outliers.items():
        check_number(rule.expr, f"{source}: outliers.{name}.expr")
    for name, rule in recipe.exclude.items():
        check_condition(rule.where, f"{source}: exclude.{name}.where")


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Recipe -> JSON values with every default; `build_recipe` reads them back.

    Of a Polars expression only its printed form is left.
    """
    return {
        section.name: (
            {name: _plain(rule) for name, rule in getattr(recipe, section.name).items()}
            if section.name in _NAMED
            else _plain(getattr(recipe, section.name))
        )
        for section in fields(recipe)
    }


def digest_partition_rules(recipe: Recipe) -> str:
    """Recipe -> hash of what decides rows within partitions; labels are made anew every build."""
    described = describe_recipe(recipe)
    parts = [
        described["rewards"],
        described["shaping"],
        recipe.needs_task_sketch,
        recipe.needs_content_sketch,
    ]
    return blake2b(msgspec.json.encode(parts, order="sorted"), digest_size=16).hexdigest()


def _plain(rule: Any) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(rule, enc_hook=_write_expression))


def _write_expression(value: Any) -> str:
    if isinstance(value, pl.Expr):
        return str(value)
    raise NotImplementedError(type(value).__name__)


def _build(kind: type, table: Any, source: str, where: str) -> Any:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source}: {where} = {table!r}: must be a table, [{where}]")
    options = {each.name: each for each in fields(kind)}
    _refuse_unknown(table, list(options), source, where)
    for name, option in options.items():
        if name not in table and option.default is MISSING and option.default_factory is MISSING:
            raise ConfigError(f"{source}: {where}.{name} is missing; write `{name} = ...`")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
        inner = place.rstrip("`")
        said = said if inner in ("", ".") else f"{inner.lstrip('.')}: {said}"
        if "Invalid enum value" in said and (choices := _list_choices(kind, inner)):
            said += f"; use {', '.join(choices)}"
        raise ConfigError(f"{source}: {where}: {said}") from None


def _list_choices(kind: type, place: str) -> list[str]:
    """Record and the place of a value in it -> the words that may stand there."""
    found = [get_type_hints(kind).get(re.split(r"[.\[]", place.lstrip("."))[0])]
    choices: list[str] = []
    while found:
        each = found.pop(0)
        if get_origin(each) is Literal:
            choices += get_args(each)
        else:
            found += get_args(each)
    return choices


def _refuse_unknown(table: Mapping[str, Any], known: list[str], source: str, where: str) -> None:
    for key in table:
        if key not in known:
            name = f"{where}.{key}" if where else f"[{key}]"
            near = get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"{source}: unknown key {name}; {hint}")
