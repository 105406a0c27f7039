"""Rubric file (TOML or Markdown), or the name of a built-in one -> Rubric, versioned by its hash."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final

from starpo_train.errors import ConfigError
from starpo_train.judge.records import hash_json

_BUILT_IN: Final = Path(__file__).with_name("rubrics")
_KEYS: Final = ("name", "needs", "may_use", "judged", "instructions", "levels")
_NAME: Final = re.compile(r"[A-Za-z][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """What is asked, of which parts, and which scores there are."""

    name: str
    """Also the name of the reward."""
    needs: tuple[str, ...]
    """Parts without which there is no judgement."""
    judged: str
    """The part that whoever is judged has written; canaries are put into it."""
    instructions: str
    levels: tuple[tuple[float, str], ...]
    """Score -> what it means, lowest first."""
    may_use: tuple[str, ...] = ()
    """Parts that are shown where there are any."""

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hash_json(asdict(self))

    @property
    def low(self) -> float:
        """Lowest score."""
        return self.levels[0][0]

    @property
    def high(self) -> float:
        """Highest score."""
        return self.levels[-1][0]

    def build_schema(self) -> dict[str, Any]:
        """JSON schema of the answer."""
        score = {"type": "number", "enum": [score for score, _ in self.levels]}
        return {
            "type": "object",
            "properties": {
                "reason": {"type": "string"},
                "score": {"anyOf": [score, {"type": "null"}]},
            },
            "required": ["reason", "score"],
            "additionalProperties": False,
        }


def list_built_in_rubrics() -> list[str]:
    """Names of the rubrics that come with the package."""
    return sorted(path.stem for path in _BUILT_IN.glob("*.toml"))


def read_rubric(source: str | Path, *, folder: Path | None = None) -> Rubric:
    """Name of a built-in rubric, or a `.toml` or `.md` file (relative to `folder`) -> Rubric.

    Raises:
        ConfigError: no such rubric, or one that cannot be used.
    """
    path = Path(source)
    if path.suffix not in (".toml", ".md"):
        path = _BUILT_IN / f"{source}.toml"
        if not path.is_file():
            known = ", ".join(list_built_in_rubrics())
            raise ConfigError(
                f"rubric {str(source)!r}: not built in ({known}), and no .toml or .md file."
            )
    elif folder is not None:
        path = folder / path.expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else _parse_markdown(text)
    except OSError as error:
        raise ConfigError(f"rubric {path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise ConfigError(f"rubric {path}: {error}.") from None
    try:
        return build_rubric(values)
    except ConfigError as error:
        raise ConfigError(f"rubric {path}: {error}") from None


def build_rubric(values: Mapping[str, Any]) -> Rubric:
    """Keys of a rubric file -> Rubric.

    Raises:
        ConfigError: a key is unknown, missing or unusable.
    """
    unknown = [key for key in values if key not in _KEYS]
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]}; known here: {', '.join(_KEYS)}.")
    name, instructions = values.get("name"), values.get("instructions")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"name = {name!r}: must be a word, such as refund_policy.")
    if not isinstance(instructions, str) or not instructions.strip():
        raise ConfigError(f"instructions = {instructions!r}: must say what is judged.")
    needs, may_use = (_read_names(values, key) for key in ("needs", "may_use"))
    if not needs:
        raise ConfigError("needs is missing or empty; name the parts that are judged.")
    judged = values.get("judged", needs[-1])
    if judged not in needs:
        raise ConfigError(f"judged = {judged!r}: must be one of needs ({', '.join(needs)}).")
    return Rubric(
        name=name,
        needs=needs,
        may_use=may_use,
        judged=judged,
        instructions=instructions.strip(),
        levels=_read_levels(values.get("levels")),
    )


def _read_names(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = values.get(key, [])
    is_list = isinstance(names, list)
    if not is_list or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise ConfigError(f"{key} = {names!r}: must be a list of names of parts.")
    return tuple(names)


def _read_levels(values: Any) -> tuple[tuple[float, str], ...]:
    if not isinstance(values, list) or len(values) < 2:
        raise ConfigError("levels: at least two are needed, each a score and what it means.")
    levels = []
    for level in values:
        known = level if isinstance(level, dict) else {}
        score, means = known.get("score"), known.get("means")
        is_text = isinstance(means, str) and len(known) == 2
        if isinstance(score, bool) or not isinstance(score, int | float) or not is_text:
            raise ConfigError(f"levels: {level!r}: must be {{score = a number, means = a text}}.")
        if not isfinite(score):
            raise ConfigError(f"levels: score = {score}: must be finite.")
        levels.append((float(score), str(means).strip()))
    levels.sort()
    if len({score for score, _ in levels}) < len(levels):
        raise ConfigError("levels: two have the same score.")
    return tuple(levels)


def _parse_markdown(text: str) -> dict[str, Any]:
    """`# name`, lines `Needs: a, b`, `Judged: b`, text, `## Scores` with `- 0: what it means`."""
    body, separator, scores = text.partition("\n## Scores")
    title = re.search(r"^# +(\S+) *$", body, re.M)
    if title is None or not separator:
        raise ValueError("must have a line `# name` and a section `## Scores`")
    values: dict[str, Any] = {"name": title[1]}
    for key, name in (("Needs", "needs"), ("May use", "may_use"), ("Judged", "judged")):
        found = re.search(rf"^{key}: *(.+)$", body, re.M)
        if found:
            names = [each.strip() for each in found[1].split(",")]
            values[name] = names[0] if name == "judged" else names
            body = body.replace(found[0], "")
    values["instructions"] = body.replace(title[0], "", 1)
    values["levels"] = [
        {"score": float(score), "means": means}
        for score, means in re.findall(r"^[-*] +([-+\d.eE]+): *(.+)$", scores, re.M)
    ]
    return values
