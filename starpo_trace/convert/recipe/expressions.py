"""SQL text or a Polars expression -> checked Polars expression over documented columns.

Text may come from anybody: `pl.sql_expr` alone would open files (`x IN (SELECT ... FROM
read_csv(...))`) and read the clock, so every word must be a column, or a keyword or function listed
here, before Polars sees it. Aggregates and windows must stay within a trajectory: a bare `SUM`
would run over whatever else is in the partition.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import polars as pl

from starpo_trace.convert.columns import polars_schema
from starpo_trace.convert.recipe.features import STATE_COLUMNS, TRAJECTORY_COLUMNS, TURN_COLUMNS
from starpo_trace.errors import ConfigError

_MAX_LENGTH: Final = 4000
_MAX_SAID: Final = 200
_MAX_TOKENS: Final = 500
"""The parser takes cubic time in the length of a chain."""

_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
    | (?P<text>'(?:[^']|'')*')
    | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)(?!')
    | (?P<sign><=|>=|<>|!=|\|\||[-+*/%=<>(),\[\]~])""",
    re.VERBOSE,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_KEYWORDS: Final = frozenset(
    [
        "CASE",
        "WHEN",
        "THEN",
        "ELSE",
        "END",
        "AND",
        "OR",
        "NOT",
        "IS",
        "NULL",
        "TRUE",
        "FALSE",
        "IN",
        "BETWEEN",
        "LIKE",
        "ILIKE",
        "AS",
        "DOUBLE",
        "INT",
        "BIGINT",
        "OVER",
        "PARTITION",
        "BY",
        "ORDER",
        "ASC",
        "DESC",
    ]
)
_FUNCTIONS: Final = frozenset(
    [
        "ABS",
        "CEIL",
        "FLOOR",
        "ROUND",
        "SIGN",
        "SQRT",
        "EXP",
        "LN",
        "LOG2",
        "LOG10",
        "POW",
        "MOD",
        "GREATEST",
        "LEAST",
        "COALESCE",
        "NULLIF",
        "IFNULL",
        "IF",
        "CAST",
        "LENGTH",
        "LOWER",
        "UPPER",
        "STARTS_WITH",
        "ENDS_WITH",
        "STRPOS",
        "SUBSTR",
        "REGEXP_LIKE",
        "ARRAY_LENGTH",
        "ARRAY_CONTAINS",
        "ARRAY_GET",
        "ARRAY_TO_STRING",
        "CONCAT",
    ]
)
_ORDERED: Final = _words("LAG LEAD FIRST_VALUE LAST_VALUE ROW_NUMBER")
_WINDOWED: Final = _ORDERED | _words("SUM AVG MIN MAX COUNT MEDIAN RANK DENSE_RANK")
_CALLED: Final = _KEYWORDS - _words("NULL TRUE FALSE END ASC DESC DOUBLE INT BIGINT")
"""Keywords that a parenthesis may follow without being a function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    kind: str
    text: str

    @property
    def upper(self) -> str:
        return self.text.upper() if self.kind == "word" else self.text


def check_shaping(expression: Any, where: str) -> pl.Expr:
    """Expression over `TURN_COLUMNS`, one number or truth value per turn.

    Raises:
        ConfigError: it is no such expression; `where` is what the error calls it.
    """
    return _check(expression, where, TURN_COLUMNS, has_windows=True)


def check_potential(expression: Any, where: str) -> pl.Expr:
    """Expression over `STATE_COLUMNS`: what is known before the turn acts."""
    return _check(expression, where, STATE_COLUMNS, has_windows=False)


def check_number(expression: Any, where: str) -> pl.Expr:
    """Expression over `TRAJECTORY_COLUMNS`, one number per trajectory."""
    return _check(expression, where, TRAJECTORY_COLUMNS, has_windows=False)


def check_condition(expression: Any, where: str) -> pl.Expr:
    """Expression over `TRAJECTORY_COLUMNS`, true or false per trajectory."""
    return _check(expression, where, TRAJECTORY_COLUMNS, has_windows=False, is_condition=True)


def _check(
    expression: Any,
    where: str,
    columns: Mapping[str, str],
    *,
    has_windows: bool,
    is_condition: bool = False,
) -> pl.Expr:
    if isinstance(expression, pl.Expr):
        # Python's own expressions see one trajectory at a time, in the order of its turns.
        built = expression.over("trajectory_id", order_by="turn") if has_windows else expression
    elif isinstance(expression, str):
        built = _parse(expression, where, columns, has_windows=has_windows)
    else:
        raise ConfigError(f"{where} = {expression!r}: must be an expression in a string")
    try:
        schema = polars_schema(columns)
        if unknown := [name for name in built.meta.root_names() if name not in columns]:
            raise ConfigError(_say_unknown(where, unknown[0], columns))
        resolved = pl.LazyFrame(schema=schema).select(built.alias("value")).collect_schema()
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"{where}: {_first_line(error)}") from None
    kind = resolved["value"]
    if is_condition and kind != pl.Boolean:
        raise ConfigError(f"{where}: is {kind}, must be true or false, such as num_turns < 2")
    if not (kind.is_numeric() or kind in (pl.Boolean, pl.Null)):
        raise ConfigError(f"{where}: is {kind}, must be a number")
    return built if is_condition else built.cast(pl.Float64)


def _parse(text: str, where: str, columns: Mapping[str, str], *, has_windows: bool) -> pl.Expr:
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"{where}: {len(text)} characters; at most {_MAX_LENGTH}")
    tokens = list(_tokenize(text, where))
    if not 0 < len(tokens) <= _MAX_TOKENS:
        raise ConfigError(f"{where}: {len(tokens)} words and signs; must be 1 to {_MAX_TOKENS}")
    for i, token in enumerate(tokens):
        if token.kind == "word":
            is_called = i + 1 < len(tokens) and tokens[i + 1].text == "("
            _check_word(token, where, columns, is_called=is_called, has_windows=has_windows)
            if token.upper in _WINDOWED and is_called:
                _check_window(tokens, i, where)
    written = " ".join(_write(token) for token in tokens)
    try:
        return pl.sql_expr(written)
    except (pl.exceptions.PolarsError, pl.exceptions.SQLInterfaceError) as error:
        raise ConfigError(f"{where} = {text!r}: {_first_line(error)}") from None


def _tokenize(text: str, where: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            hint = "; texts stand in 'single quotes'" if text[at] == '"' else ""
            raise ConfigError(
                f"{where}: {text[at : at + 10]!r} at character {at + 1}: not allowed here{hint}"
            )
        kind, token = str(found.lastgroup), found.group()
        at = found.end()
        # Dialects disagree on whether \' ends a string, and on what begins a comment.
        if (kind == "text" and "\\'" in token) or text[at - 1 : at + 1] in ("--", "/*"):
            raise ConfigError(f"{where}: {text[max(0, at - 10) : at + 1]!r}: not allowed here")
        if kind != "space":
            yield _Token(kind=kind, text=token)


def _check_word(
    token: _Token, where: str, columns: Mapping[str, str], *, is_called: bool, has_windows: bool
) -> None:
    word = token.upper
    if is_called and word in _FUNCTIONS:
        return
    if is_called and word in _WINDOWED:
        if has_windows:
            return
        raise ConfigError(f"{where}: {word}: only the row itself can be looked at here")
    if word in _KEYWORDS and (not is_called or word in _CALLED):
        return
    if token.text in columns and not is_called:
        return
    if is_called:
        known = sorted(_FUNCTIONS | (_WINDOWED if has_windows else frozenset()))
        raise ConfigError(_say_unknown(where, word, known, what="function"))
    raise ConfigError(_say_unknown(where, token.text, columns))


def _check_window(tokens: list[_Token], i: int, where: str) -> None:
    """`F(...)` must go on with `OVER (PARTITION BY trajectory_id`."""
    depth, end = 0, i + 1
    for end in range(i + 1, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[end].text, 0)
        if depth == 0:
            break
    rest = [token.upper for token in tokens[end + 1 : end + 10]]
    name = tokens[i].upper
    order = "" if name == "MEDIAN" else " ORDER BY turn"  # which Polars has no running one of
    is_own = rest[:5] == ["OVER", "(", "PARTITION", "BY", "TRAJECTORY_ID"]
    if not is_own or rest[5:6] not in ([")"], [","], ["ORDER"]):
        raise ConfigError(
            f"{where}: {name} would run over other trajectories; write "
            f"{name}(...) OVER (PARTITION BY trajectory_id{order})"
        )
    is_ordered = rest[5:8] == ["ORDER", "BY", "TURN"] and rest[8:] in ([")"], ["ASC"], ["DESC"])
    if name in _ORDERED and not is_ordered:
        raise ConfigError(
            f"{where}: {name} needs an order; write OVER (PARTITION BY trajectory_id ORDER BY turn)"
        )


def _write(token: _Token) -> str:
    # `0.5` would be a decimal of its own few digits, `0.5e0` is a float.
    is_decimal = token.kind == "number" and "." in token.text and "e" not in token.text.lower()
    return f"{token.text}e0" if is_decimal else token.text


def _say_unknown(where: str, name: str, known: Any, *, what: str = "column") -> str:
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
    return f"{where}: unknown {what} {name}; {hint}"


def say_briefly(error: BaseException) -> str:
    """Polars' error -> what it says, without the plan it was found in."""
    line = " ".join(str(error).split()).partition(" This error occurred")[0]
    return line if len(line) <= _MAX_SAID else f"{line[:_MAX_SAID]}..."


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
