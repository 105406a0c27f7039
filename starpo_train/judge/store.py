"""SQLite file: answers by pin and content, and a ledger of what was spent.

Several processes may share one. The first answer to a key stays, so that all of them see the same;
a budget is reserved before a call and settled after it, in one transaction each, so that neither
threads nor processes overspend together. A process that is killed leaves what it had reserved as spent.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from starpo_train.errors import ConfigError

_VERSION: Final = 1
_BUSY_S: Final = 60.0
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, value TEXT NOT NULL, answered_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending (
    id INTEGER PRIMARY KEY, ledger TEXT NOT NULL, input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, is_settled INTEGER NOT NULL, started_ns INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS spending_of ON spending (ledger);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run may spend, over all its starts; None: no limit."""

    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    """In the currency of the prices."""
    input_price: float = 0.0
    """Of a million tokens read."""
    output_price: float = 0.0
    """Of a million tokens written."""

    def price(self, input_tokens: int, output_tokens: int) -> float:
        """Tokens -> cost."""
        return (input_tokens * self.input_price + output_tokens * self.output_price) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was spent, or is reserved."""

    calls: int
    input_tokens: int
    output_tokens: int
    unsettled: int = 0
    """Calls of which only the reservation is known."""

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.input_tokens + self.output_tokens


class BudgetError(Exception):
    """The next call could exceed the budget."""


class JudgeStore:
    """One file, opened on first use; may be used by several threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def find(self, key: str) -> dict[str, Any] | None:
        """The answer kept under a key."""
        with self._transaction(is_writing=False) as connection:
            row = connection.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def keep(self, key: str, value: dict[str, Any]) -> dict[str, Any]:
        """Keep an answer, and give the one that is kept: another process may have been first."""
        text = json.dumps(value)
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, text, time.time_ns())
            )
            row = connection.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0])

    def reserve(self, ledger: str, budget: Budget, *, input_tokens: int, output_tokens: int) -> int:
        """Set aside what a call may cost at most -> its number, for `settle` or `release`.

        Raises:
            BudgetError: there is not so much left.
        """
        with self._transaction() as connection:
            spent = _sum(connection, ledger)
            _check(budget, spent, input_tokens, output_tokens)
            cursor = connection.execute(
                "INSERT INTO spending (ledger, input_tokens, output_tokens, is_settled, started_ns) "
                "VALUES (?, ?, ?, 0, ?)",
                (ledger, input_tokens, output_tokens, time.time_ns()),
            )
            return int(cursor.lastrowid or 0)

    def settle(self, number: int, *, input_tokens: int | None, output_tokens: int | None) -> None:
        """Put down what a call did cost; without usage the reservation stays."""
        if input_tokens is None or output_tokens is None:
            return
        with self._transaction() as connection:
            connection.execute(
                "UPDATE spending SET input_tokens = ?, output_tokens = ?, is_settled = 1 "
                "WHERE id = ?",
                (input_tokens, output_tokens, number),
            )

    def release(self, number: int) -> None:
        """A call that was not answered costs nothing."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM spending WHERE id = ?", (number,))

    def read_spent(self, ledger: str) -> Spent:
        """What a ledger has spent and reserved so far."""
        with self._transaction(is_writing=False) as connection:
            return _sum(connection, ledger)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _transaction(self, *, is_writing: bool = True) -> Iterator[sqlite3.Connection]:
        with self._lock:
            connection = self._connection or self._open()
            connection.execute("BEGIN IMMEDIATE" if is_writing else "BEGIN")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                connection.executescript(
                    f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;"
                )
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{self.path}: no cache of a judge ({error}); move it away, or name another."
            ) from None
        if version not in (0, _VERSION):
            connection.close()
            raise ConfigError(f"{self.path}: version {version}, this release has {_VERSION}.")
        self._connection = connection
        return connection


def _sum(connection: sqlite3.Connection, ledger: str) -> Spent:
    calls, read, written, settled = connection.execute(
        "SELECT count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), "
        "coalesce(sum(is_settled), 0) FROM spending WHERE ledger = ?",
        (ledger,),
    ).fetchone()
    return Spent(calls=calls, input_tokens=read, output_tokens=written, unsettled=calls - settled)


def _check(budget: Budget, spent: Spent, input_tokens: int, output_tokens: int) -> None:
    cost = budget.price(spent.input_tokens + input_tokens, spent.output_tokens + output_tokens)
    tokens = spent.tokens + input_tokens + output_tokens
    for name, needed, limit in (
        ("max_calls", spent.calls + 1, budget.max_calls),
        ("max_tokens", tokens, budget.max_tokens),
        ("max_cost", cost, budget.max_cost),
    ):
        if limit is not None and needed > limit:
            raise BudgetError(f"budget.{name} = {limit:g}: the next call may need {needed:g}")
