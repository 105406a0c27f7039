"""Folder of log-probabilities that were not recorded <-> what a run takes from it.

A turn is found by its trajectory, its number and a hash of its prompt and answer as ids, so that
log-probabilities never land on other tokens than those that were scored.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl

from starpo_trace.convert.verdict import INFORMATION
from starpo_train.config import DataSection
from starpo_train.dataset import Trajectory, Turn, has_version, read_manifest
from starpo_train.errors import ConfigError, DataError
from starpo_train.modelfolder import hash_file
from starpo_train.wholefile import write_atomically

TABLE_FILE: Final = "logprobs.parquet"
FACTS_FILE: Final = "behaviour.json"
Provenance = Literal["estimated", "exact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLogprobs:
    """One turn that was scored."""

    trajectory_id: str
    turn: int
    ids_digest: str
    """Of the prompt and the answer."""
    logprobs_T: np.ndarray
    """float32, of the answer's ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What a behaviour folder holds."""

    provenance: Provenance
    """estimated: a model that was fitted to the data; exact: the model that sampled it."""
    facts: dict[str, Any]
    """How it was made, and how good it is."""
    digest: str
    """SHA-256 of the table."""
    turns: Mapping[tuple[str, int], TurnLogprobs]

    def find(
        self, trajectory_id: str, turn: int, prompt_ids_T: np.ndarray, response_ids_T: np.ndarray
    ) -> np.ndarray | None:
        """Log-probabilities of an answer; None where this turn was not scored, or as other ids."""
        found = self.turns.get((trajectory_id, turn))
        if found is None or found.ids_digest != digest_ids(prompt_ids_T, response_ids_T):
            return None
        return found.logprobs_T

    def covers(self, trajectory: Trajectory, *, models: Sequence[str] = ()) -> bool:
        """Whether every turn that would be trained has log-probabilities, recorded or from here."""
        trained = [
            turn
            for turn in trajectory.turns
            if (not models or turn.model in models) and turn.output_node is not None
        ] or [t for t in trajectory.turns if t.response_ids_T is not None]
        return bool(trained) and all(
            turn.logprobs_T is not None or (trajectory.trajectory_id, turn.turn) in self.turns
            for turn in trained
        )


def digest_ids(prompt_ids_T: np.ndarray, response_ids_T: np.ndarray) -> str:
    """Hash of a turn's ids."""
    digest = blake2b(digest_size=16)
    for ids_T in (prompt_ids_T, response_ids_T):
        digest.update(len(ids_T).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(ids_T, dtype="<i4").tobytes())
    return digest.hexdigest()


def write_behaviour(
    folder: Path, turns: Sequence[TurnLogprobs], *, provenance: Provenance, facts: dict[str, Any]
) -> None:
    """Write the table, then what it is: a folder counts from the latter."""
    frame = pl.DataFrame(
        {
            "trajectory_id": [turn.trajectory_id for turn in turns],
            "turn": [turn.turn for turn in turns],
            "ids_digest": [turn.ids_digest for turn in turns],
            "logprobs": [turn.logprobs_T.astype(np.float32).tolist() for turn in turns],
        },
        schema={
            "trajectory_id": pl.String,
            "turn": pl.Int64,
            "ids_digest": pl.String,
            "logprobs": pl.List(pl.Float32),
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS_FILE).unlink(missing_ok=True)
    frame.write_parquet(folder / TABLE_FILE)
    table = {"table_sha256": hash_file(folder / TABLE_FILE)}
    values = {"provenance": provenance} | table | facts
    write_atomically(folder / FACTS_FILE, json.dumps(values, indent=2) + "\n")


def read_behaviour(folder: Path, *, dataset: Path) -> Behaviour:
    """Folder written by `starpo-train behaviour` -> Behaviour.

    Raises:
        ConfigError: no such folder, or one that is not whole.
        DataError: it was made for another dataset or another version of this one.
    """
    file = folder / FACTS_FILE
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        frame = pl.read_parquet(folder / TABLE_FILE)
        provenance = facts["provenance"]
        made_for = facts["dataset"]["digest"]
    except FileNotFoundError as error:
        raise ConfigError(
            f"data.behaviour = {str(folder)!r}: {Path(str(error.filename)).name} is missing; "
            "`starpo-train behaviour` writes such a folder, and ends with it."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"data.behaviour = {str(folder)!r}: cannot be read ({error}).") from None
    table = hash_file(folder / TABLE_FILE)
    if table != facts.get("table_sha256"):
        raise ConfigError(
            f"data.behaviour = {str(folder)!r}: {TABLE_FILE} is not the file that {FACTS_FILE} was "
            "written for; make it again with `starpo-train behaviour`."
        )
    digest = read_manifest(dataset).digest
    if made_for != digest:
        raise DataError(
            f"data.behaviour = {str(folder)!r}: made for version {made_for[:12]} of the dataset, "
            f"{dataset} is at {digest[:12]}; make it again"
            + (f", or train on {dataset}@{made_for}." if has_version(dataset, made_for) else ".")
        )
    turns = {
        (trajectory_id, turn): TurnLogprobs(
            trajectory_id=trajectory_id,
            turn=turn,
            ids_digest=ids_digest,
            logprobs_T=np.array(logprobs, dtype=np.float32),
        )
        for trajectory_id, turn, ids_digest, logprobs in frame.iter_rows()
    }
    return Behaviour(provenance=provenance, facts=facts, digest=table, turns=turns)


def require_convention(behaviour: Behaviour, data: DataSection) -> None:
    """Refuse to score the policy at another temperature than these log-probabilities are of.

    Raises:
        ConfigError: they are of turns sampled at another one than 1, and data.logprobs is 'raw'.
    """
    tempered = [t for t in behaviour.facts.get("temperatures", []) if t != 1]
    if tempered and data.logprobs == "raw":
        raise ConfigError(
            f"data.behaviour = {str(data.behaviour)!r}: its log-probabilities are of turns sampled "
            f"at temperatures {tempered}; set data.logprobs = 'processed', at which the policy is "
            "scored so, too."
        )


def accept_rescored(trajectory: Trajectory, behaviour: Behaviour) -> Trajectory:
    """A trajectory with the log-probabilities that the model which sampled it gave afterwards."""
    if behaviour.provenance != "exact":
        return trajectory
    turns = tuple(_accept_turn(trajectory, turn, behaviour) for turn in trajectory.turns)
    usable_for, reasons = trajectory.usable_for, trajectory.reasons
    if all(turn.logprobs_exact for turn in turns if turn.response_ids_T is not None):
        reasons = tuple(reason for reason in reasons if reason != "logprob_missing")
        if usable_for == "sft" and set(reasons) <= set(INFORMATION):
            usable_for = "rl"
    return replace(trajectory, turns=turns, usable_for=usable_for, reasons=reasons)


def _accept_turn(trajectory: Trajectory, turn: Turn, behaviour: Behaviour) -> Turn:
    if turn.logprobs_T is not None or turn.prompt_ids_T is None or turn.response_ids_T is None:
        return turn
    found_T = behaviour.find(
        trajectory.trajectory_id, turn.turn, turn.prompt_ids_T, turn.response_ids_T
    )
    if found_T is None:
        return turn
    return replace(turn, logprobs_T=found_T, logprobs_exact=True)
