"""Dataset folder (manifest + pinned Delta tables) -> Trajectory records.

Array suffix: T tokens.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import polars as pl

from starpo_trace.schema import DATASET_SCHEMA_VERSION, MANIFEST_FILE, TABLES, VERSIONS_FOLDER
from starpo_train.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What belongs together in a dataset folder."""

    path: Path
    """The dataset folder."""
    digest: str
    """Identifies the dataset's content."""
    versions: dict[str, int]
    """Delta version of each table."""
    values: dict[str, Any]
    """The manifest file as written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One model call of a trajectory."""

    turn: int
    """0.. in the order of the trajectory."""
    model: str | None
    prompt_ids_T: np.ndarray | None
    """int32, the whole prompt; None when ids were not recorded."""
    response_ids_T: np.ndarray | None
    """int32, exactly as sampled."""
    logprobs_T: np.ndarray | None
    """float32, of the response under the policy that sampled it."""
    logprobs_exact: bool
    """The log-probabilities are those of the distribution that was sampled from."""
    reward: float | None
    """Sum of the turn's own (process) rewards."""
    shaping: float | None = None
    """What the dataset's recipe gives the turn beside them."""
    input_node: str | None
    output_node: str | None
    tool_definitions: str | None
    """JSON list as sent."""
    started_ns: int | None = None
    temperature: float | None = None
    """It was sampled at; None: the call named none."""
    top_p: float | None = None
    top_k: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One attempt at one task."""

    trajectory_id: str
    task_id: str | None
    """The group that StarPO compares within: the dataset's `group_id`, by default the task."""
    policy_id: str | None
    user_id: str | None = None
    """For whom it ran."""
    reward: float | None
    end: str
    """terminated | truncated | abandoned | error | unknown."""
    usable_for: str
    """rl | sft | none."""
    reasons: tuple[str, ...]
    turns: tuple[Turn, ...]
    rewards: dict[str, float] = field(default_factory=dict)
    """What `reward` is made of, by name: the recipe's parts, else every outcome that counts."""
    reward_weights: dict[str, float] = field(default_factory=dict)
    """The recipe's weight of each; 1 where there is none."""

    def lacks_ids(self, models: Sequence[str] = ()) -> bool:
        """Whether an answer that would be trained has no ids (`models`: of these; empty: of any)."""
        return any(
            turn.response_ids_T is None and turn.output_node is not None
            for turn in self.turns
            if not models or turn.model in models
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageNode:
    """One message of a trajectory's message graph."""

    parent_id: str | None
    message: dict[str, Any]


def read_manifest(path: Path) -> Manifest:
    """Dataset folder, or `FOLDER@DIGEST` for one of its earlier versions -> Manifest.

    Raises:
        DataError: no folder, no readable manifest, or one of another schema version.
    """
    path, file = _find_manifest(path)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        void = values.get("void")
        versions = {} if void else {n: int(t["version"]) for n, t in values["tables"].items()}
        version = str(values["schema_version"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a dataset manifest ({error!r}); build it again.") from None
    if void:
        raise DataError(
            f"{path}: version {file.stem[:12]} is void: {void}; "
            "start a new run on the current version."
        )
    if version != DATASET_SCHEMA_VERSION:
        raise DataError(
            f"{file}: schema version {version}, this release reads {DATASET_SCHEMA_VERSION}; "
            "build the dataset again with this release."
        )
    return Manifest(
        path=path, digest=str(values.get("digest", "")), versions=versions, values=values
    )


def has_version(path: Path, digest: str) -> bool:
    """Whether the dataset at `path` knows a version of this digest, kept or void."""
    return (path / VERSIONS_FOLDER / f"{digest}.json").is_file()


def _is_kept() -> pl.Expr:
    """Whether the recipe keeps a trajectory."""
    return pl.col("excluded_because").list.len().fill_null(0) == 0


def has_split(path: Path, split: str) -> bool:
    """Whether the dataset has a trajectory in the split that its recipe keeps.

    Raises:
        DataError: no dataset.
    """
    rows = _scan(read_manifest(path), "trajectories").filter(_is_kept(), pl.col("split") == split)
    return not rows.head(1).collect().is_empty()


def _find_manifest(path: Path) -> tuple[Path, Path]:
    """Dataset's folder, or `FOLDER@DIGEST` for one of its versions -> folder and manifest file."""
    folder, _, digest = str(path).rpartition("@")
    if digest and folder and not path.exists():
        found = sorted((Path(folder) / VERSIONS_FOLDER).glob(f"{digest}*.json"))
        if len(found) == 1:
            return Path(folder), found[0]
        what = f"{len(found)} versions begin with" if found else "no version"
        raise DataError(f"{folder}: {what} {digest}; `ls {folder}/{VERSIONS_FOLDER}` lists them.")
    file = path / MANIFEST_FILE
    if not file.is_file():
        if (inner := path / "dataset" / MANIFEST_FILE).is_file():  # of an evaluation
            raise DataError(f"{path}: no dataset, but {inner.parent} is one; give that.")
        raise DataError(
            f"{path}: no dataset here ({MANIFEST_FILE} is missing); "
            "build one with `starpo-trace export SOURCE -o DATASET`."
        )
    return path, file


def scan_table(source: Path | Manifest, name: str) -> pl.LazyFrame:
    """Table `name` of a dataset, lazily, at the version its manifest pins.

    Raises:
        DataError: no dataset, or the table's files are not those the manifest was written for.
    """
    return _scan(source if isinstance(source, Manifest) else read_manifest(source), name)


def read_trajectories(path: Path, *, split: str = "train") -> list[Trajectory]:
    """Every trajectory of one split that the recipe keeps, turns in order, in the order of ids.

    Raises:
        DataError: no dataset, or no trajectory in the split.
    """
    manifest = read_manifest(path)
    rows = _scan(manifest, "trajectories").sort("trajectory_id").collect()
    is_kept = _is_kept()
    chosen = rows.filter(is_kept, pl.col("split") == split)
    if chosen.is_empty():
        sizes = dict(rows.filter(is_kept).group_by("split").len().sort("split").iter_rows())
        num_excluded = rows.filter(~is_kept).height
        raise DataError(
            f"{path}: no trajectory in split {split!r}; it holds {sizes or 'nothing'}"
            + (f" and {num_excluded} that its recipe leaves out" if num_excluded else "")
            + ". Choose another split or record more."
        )
    turns = (
        _scan(manifest, "turns")
        .join(chosen.lazy().select("trajectory_id"), on="trajectory_id", how="semi")
        .sort("trajectory_id", "turn")
        .collect()
    )
    turns_of = _build_turns(turns)
    outcomes_of = _read_outcomes(manifest, chosen)
    return [
        Trajectory(
            trajectory_id=row["trajectory_id"],
            task_id=row["group_id"] if row["group_id"] is not None else row["task_id"],
            policy_id=row["policy_id"],
            user_id=row["user_id"],
            reward=_require_finite(row["reward"], row["trajectory_id"], path),
            end=row["end"],
            usable_for=row["usable_for"],
            reasons=tuple(row["reasons"] or ()),
            turns=tuple(turns_of.get(row["trajectory_id"], ())),
            rewards=_list_parts(row) or outcomes_of.get(row["trajectory_id"], {}),
            reward_weights={part["name"]: part["weight"] for part in row["reward_parts"] or ()},
        )
        for row in chosen.iter_rows(named=True)
    ]


def _require_finite(reward: float | None, trajectory_id: str, path: Path) -> float | None:
    if reward is not None and not math.isfinite(reward):
        raise DataError(
            f"{path}: trajectory {trajectory_id}: its reward is {reward}; a reward is a finite number "
            "or missing. Record it again, or leave the trajectory out by a recipe."
        )
    return reward


def read_message_graphs(
    source: Path | Manifest, trajectory_ids: Sequence[str]
) -> dict[str, dict[str, MessageNode]]:
    """Message graphs of some trajectories: trajectory id -> node id -> MessageNode."""
    wanted = pl.LazyFrame({"trajectory_id": trajectory_ids}, schema={"trajectory_id": pl.String})
    rows = (
        scan_table(source, "messages")
        .join(wanted, on="trajectory_id", how="semi")
        .select("trajectory_id", "node_id", "parent_id", "message")
        .collect()
    )
    graphs: dict[str, dict[str, MessageNode]] = {}
    for trajectory_id, node_id, parent_id, message in rows.iter_rows():
        graphs.setdefault(trajectory_id, {})[node_id] = MessageNode(
            parent_id=parent_id, message=json.loads(message)
        )
    return graphs


def _list_parts(row: dict[str, Any]) -> dict[str, float]:
    """The recipe's parts of one trajectory's reward that have a value."""
    parts = row["reward_parts"] or ()
    return {part["name"]: part["value"] for part in parts if part["value"] is not None}


def _read_outcomes(manifest: Manifest, chosen: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Trajectory id -> outcome rewards that count, of each name the one signed or recorded last."""
    rows = (
        _scan(manifest, "rewards")
        .join(chosen.lazy().select("trajectory_id"), on="trajectory_id", how="semi")
        .filter(
            pl.col("trusted"),
            ~pl.col("superseded"),
            pl.col("scope") == "trajectory",
            pl.col("kind") == "outcome",
            pl.col("value").is_not_null(),
            pl.col("name").is_not_null(),
        )
        .sort(pl.col("signature").eq_missing("valid"), "time_ns", "reward_id")
        .select("trajectory_id", "name", "value")
        .collect()
    )
    outcomes: dict[str, dict[str, float]] = {}
    for trajectory_id, name, value in rows.iter_rows():
        outcomes.setdefault(trajectory_id, {})[name] = value  # later rows replace earlier ones
    return outcomes


def _scan(manifest: Manifest, name: str) -> pl.LazyFrame:
    from deltalake import DeltaTable

    if name not in TABLES:
        raise DataError(f"{manifest.path}: no table {name!r}; known: {', '.join(TABLES)}.")
    folder = manifest.path / name
    if name not in manifest.versions:
        raise _mismatch(folder, "it names no version of this table")
    _verify_files(manifest, name)
    version = manifest.versions[name]
    try:
        table = DeltaTable(str(folder), version=version)
        files = [folder / unquote(file) for file in table.file_uris()]
        missing = next((file.name for file in files if not file.is_file()), None)
        # not scan_delta, which finds no file in a folder whose name has a space
        frame = pl.scan_parquet(files, glob=False) if files else pl.scan_delta(table)
    except Exception as error:
        # delta's messages are long and name its own internals; the first line says what failed
        reason = str(error).strip().split("\n")[0]
        raise _mismatch(folder, f"version {version} cannot be read: {reason}") from error
    if missing is not None:
        raise _mismatch(folder, f"{missing} is missing")
    return frame


def _verify_files(manifest: Manifest, name: str) -> None:
    """Compare a table's files with the hashes of the manifest, where it has them."""
    folder = manifest.path / name
    expected = manifest.values["tables"][name].get("files")
    if expected is None:
        return
    if not isinstance(expected, dict):
        raise _mismatch(folder, f"its list of files is {type(expected).__name__}, not a table")
    for relative, digest in expected.items():
        try:
            actual = _hash_file(folder / relative)
        except OSError as error:
            fault = "is missing" if isinstance(error, FileNotFoundError) else str(error)
            raise _mismatch(folder, f"{relative} {fault}") from None
        if actual != digest:
            raise _mismatch(folder, f"{relative} was changed")


def _hash_file(path: Path) -> str:
    """BLAKE2b-128 of a file, computed once per process as long as size and time stay."""
    status = path.stat()
    state = (status.st_mtime_ns, status.st_size)
    known = _HASHES.get(path)
    if known is not None and known[0] == state:
        return known[1]
    with path.open("rb") as file:
        digest = file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()
    _HASHES[path] = (state, digest)
    return digest


_HASHES: dict[Path, tuple[tuple[int, int], str]] = {}


def _mismatch(folder: Path, reason: str) -> DataError:
    return DataError(f"{folder}: does not match {MANIFEST_FILE} ({reason}); export again.")


def _build_turns(rows: pl.DataFrame) -> dict[str, list[Turn]]:
    columns = {
        name: rows[name].to_list()
        for name in (
            "trajectory_id",
            "turn",
            "model",
            "prompt_base_turn",
            "prompt_base_length",
            "logprob_provenance",
            "token_provenance",
            "reward",
            "shaping",
            "input_node",
            "output_node",
            "tool_definitions",
            "started_ns",
            "temperature",
            "top_p",
            "top_k",
        )
    }
    prompts = _list_arrays(rows["prompt_token_ids"], np.int32)
    responses = _list_arrays(rows["response_token_ids"], np.int32)
    logprobs = _list_arrays(rows["response_logprobs"], np.float32)
    turns_of: dict[str, list[Turn]] = {}
    sequences: dict[int, np.ndarray] = {}  # turn -> its prompt + response ids
    for i, trajectory_id in enumerate(columns["trajectory_id"]):
        turns = turns_of.get(trajectory_id)
        if turns is None:
            turns = turns_of[trajectory_id] = []
            sequences = {}
        prompt, response = prompts[i], responses[i]
        base = columns["prompt_base_turn"][i]
        if prompt is not None and base is not None:
            whole = sequences.get(base)
            length = columns["prompt_base_length"][i] or 0
            if whole is None or length > len(whole):
                prompt = None
            else:
                prompt = np.concatenate([whole[:length], prompt])
        if prompt is not None:
            whole = prompt if response is None else np.concatenate([prompt, response])
            sequences[columns["turn"][i]] = whole
        exact = columns["token_provenance"][i] == "exact" and prompt is not None
        if response is None or len(response) == 0 or not exact:
            prompt = response = None
        scores = logprobs[i]
        if scores is None or response is None or len(scores) != len(response):
            scores = None
        turns.append(
            Turn(
                turn=columns["turn"][i],
                model=columns["model"][i],
                prompt_ids_T=prompt,
                response_ids_T=response,
                logprobs_T=scores,
                logprobs_exact=(scores is not None and columns["logprob_provenance"][i] == "exact"),
                reward=columns["reward"][i],
                shaping=columns["shaping"][i],
                input_node=columns["input_node"][i],
                output_node=columns["output_node"][i],
                tool_definitions=columns["tool_definitions"][i],
                started_ns=columns["started_ns"][i],
                temperature=columns["temperature"][i],
                top_p=columns["top_p"][i],
                top_k=columns["top_k"][i],
            )
        )
    return turns_of


def _list_arrays(column: pl.Series, dtype: Any) -> list[np.ndarray | None]:
    """Polars list column -> one array (a view of one buffer) per row; None for null."""
    flat = column.filter(column.list.len() > 0).explode().to_numpy().astype(dtype)
    ends = column.list.len().fill_null(0).cum_sum().to_list()
    starts = [0, *ends[:-1]]
    valid = column.is_not_null().to_list()
    return [
        flat[start:end] if ok else None for start, end, ok in zip(starts, ends, valid, strict=True)
    ]
