"""A checkpoint and a dataset -> what agrees, replay.json, turns.parquet, trajectories.parquet."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from starpo_train.dataset import (
    Manifest,
    Trajectory,
    read_manifest,
    read_message_graphs,
    read_trajectories,
    scan_table,
)
from starpo_train.errors import DataError
from starpo_train.installed import installed_version
from starpo_train.leftout import LeftOut, name_reason
from starpo_train.modelfolder import hash_weights, was_trained_on
from starpo_train.render import TurnRenderer
from starpo_train.replay.actions import Action, read_recorded
from starpo_train.replay.asking import Asking, ask_checkpoint
from starpo_train.replay.comparing import TurnComparison, compare_turn, skip_turn
from starpo_train.replay.questions import Question, QuestionWriter, RecordedTurn
from starpo_train.replay.settings import ReplaySettings
from starpo_train.replay.summary import (
    ComparedTrajectory,
    Figure,
    count_decisions,
    count_nulls,
    count_recorded_valid,
    list_trajectories,
    list_turns,
    summarize,
)
from starpo_train.serve.loading import find_max_context, load_model
from starpo_train.wholefile import write_atomically

REPLAY_FILE: Final = "replay.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What was found."""

    settings: ReplaySettings
    weights_sha256: str
    manifest: Manifest
    compared: list[ComparedTrajectory]
    figures: list[Figure]
    left_out: dict[str, int]
    """Reason -> trajectories of the split that are no logged success."""
    max_tokens: int

    def describe(self) -> dict[str, Any]:
        """For replay.json."""
        decisions = count_decisions(self.compared)
        num_valid, num_known = count_recorded_valid(self.compared)
        values = {
            "starpo": installed_version(),
            "checkpoint": {
                "path": self.settings.checkpoint,
                "weights_sha256": self.weights_sha256,
            },
            "dataset": {
                "path": str(self.settings.dataset),
                "digest": self.manifest.digest,
                "table_versions": self.manifest.versions,
                "split": self.settings.split,
            },
            "settings": asdict(self.settings) | {"max_tokens": self.max_tokens},
            "num_trajectories": len(self.compared),
            "num_turns": sum(len(each.turns) for each in self.compared),
            "num_asked": decisions.total(),
            "left_out": self.left_out,
            "figures": [asdict(figure) for figure in self.figures],
            "decisions": [
                {"recorded": recorded, "checkpoint": asked, "num_turns": count}
                for (recorded, asked), count in sorted(decisions.items())
            ],
            "nulls": count_nulls(self.compared),
            "recorded_valid": {"num_valid": num_valid, "num_turns": num_known},
        }
        return json.loads(json.dumps(values, default=str))


def run_replay(settings: ReplaySettings, *, output: Path | None = None) -> ReplayResult:
    """Ask the checkpoint at every turn of every logged success, compare, and write into `output`.

    Raises:
        DataError: no dataset, an empty split, one that the checkpoint was trained on, no logged
            success in it, or no turn at which the checkpoint can be asked.
        ModelError: the checkpoint cannot be loaded, or must render messages and has no template.
    """
    manifest = read_manifest(settings.dataset)
    if was_trained_on(settings.checkpoint, manifest.digest, settings.split):
        raise DataError(
            f"{settings.dataset}: {settings.checkpoint} was trained on split {settings.split!r} of it, "
            "so agreement there is memory; choose a split that was held out."
        )
    successes, left_out = _select(settings)
    weights_sha256 = hash_weights(settings.checkpoint)
    compared, max_tokens = _replay(settings, manifest, successes)
    if not count_decisions(compared):
        raise DataError(
            f"{settings.dataset}: the checkpoint can be asked at no turn of split "
            f"{settings.split!r}: {count_nulls(compared)['same_decision']} (docs/replay.md)."
        )
    result = ReplayResult(
        settings=settings,
        weights_sha256=weights_sha256,
        manifest=manifest,
        compared=compared,
        figures=summarize(compared),
        left_out=dict(+left_out),
        max_tokens=max_tokens,
    )
    if output is not None:
        output.mkdir(exist_ok=True)
        list_turns(compared).write_parquet(output / "turns.parquet")
        list_trajectories(compared).write_parquet(output / "trajectories.parquet")
        write_atomically(output / REPLAY_FILE, json.dumps(result.describe(), indent=2) + "\n")
    return result


def _select(settings: ReplaySettings) -> tuple[list[Trajectory], LeftOut]:
    """Logged successes, and why the others are none."""
    successes, left_out = [], LeftOut()
    for each in read_trajectories(settings.dataset, split=settings.split):
        if each.reward is None:
            left_out["no_reward"] += 1
        elif each.reward < settings.threshold:
            left_out["below_threshold"] += 1
        elif each.usable_for == "none":
            left_out[name_reason(each.reasons, each.usable_for)] += 1
        else:
            successes.append(each)
    if not successes:
        raise DataError(
            f"{settings.dataset}: no logged success in split {settings.split!r} "
            f"({dict(left_out)}); lower --threshold {settings.threshold:g}, or record rewards."
        )
    return successes, left_out


def _replay(
    settings: ReplaySettings, manifest: Manifest, successes: Sequence[Trajectory]
) -> tuple[list[ComparedTrajectory], int]:
    """What was found, and the most tokens of an answer."""
    model, tokenizer = load_model(settings.checkpoint)
    missing = [each.trajectory_id for each in successes if each.lacks_ids(settings.models)]
    graphs, renderer = {}, None
    if missing:
        renderer = TurnRenderer(tokenizer, model_path=settings.checkpoint)
        graphs = read_message_graphs(settings.dataset, missing)
    writer = QuestionWriter(
        tokenizer=tokenizer,
        num_vocabulary=model.get_input_embeddings().num_embeddings,
        max_context=find_max_context(model),
        models=settings.models,
        renderer=renderer,
    )
    recorded = _read_recorded(manifest, successes)
    questions_N = [
        writer.write_questions(
            each, recorded[each.trajectory_id], graphs.get(each.trajectory_id, {})
        )
        for each in successes
    ]
    asked = [
        (each.trajectory_id, question)
        for each, questions in zip(successes, questions_N, strict=True)
        for question in questions
        if question.reason is None
    ]
    longest = max((question.num_answer_tokens for _, question in asked), default=1)
    max_tokens = settings.max_tokens or 2 * longest
    actions = ask_checkpoint(
        model,
        tokenizer,
        asked,
        Asking(temperature=settings.temperature, seed=settings.seed, max_tokens=max_tokens),
        max_context=writer.max_context,
    )
    action_of = {
        (name, question.turn): action
        for (name, question), action in zip(asked, actions, strict=True)
    }
    cohorts = _read_cohorts(manifest)
    compared = [
        ComparedTrajectory(
            trajectory_id=each.trajectory_id,
            task_id=each.task_id,
            cohort=cohorts.get(each.trajectory_id),
            turns=tuple(
                (
                    question.turn,
                    _compare(
                        question, action_of.get((each.trajectory_id, question.turn)), settings
                    ),
                )
                for question in questions
            ),
        )
        for each, questions in zip(successes, questions_N, strict=True)
    ]
    return compared, max_tokens


def _compare(question: Question, asked: Action | None, settings: ReplaySettings) -> TurnComparison:
    if asked is None:
        return skip_turn(question.recorded, str(question.reason))
    return compare_turn(
        question.recorded, asked, question.tool_definitions, arguments=settings.arguments
    )


def _read_cohorts(manifest: Manifest) -> dict[str, str | None]:
    rows = scan_table(manifest, "trajectories").select("trajectory_id", "cohort").collect()
    return dict(rows.iter_rows())


def _read_recorded(
    manifest: Manifest, successes: Sequence[Trajectory]
) -> dict[str, dict[int, RecordedTurn]]:
    """Trajectory -> turn -> what was done there."""
    wanted = pl.LazyFrame(
        {"trajectory_id": [each.trajectory_id for each in successes]},
        schema={"trajectory_id": pl.String},
    )
    rows = (
        scan_table(manifest, "turns")
        .join(wanted, on="trajectory_id", how="semi")
        .select("trajectory_id", "turn", "tool_calls", "text", "finish_reason", "outcome")
        .collect()
    )
    found: dict[str, dict[int, RecordedTurn]] = {each.trajectory_id: {} for each in successes}
    for key, turn, calls, text, finish_reason, outcome in rows.iter_rows():
        found[key][turn] = RecordedTurn(
            action=read_recorded(calls, text), finish_reason=finish_reason, outcome=outcome
        )
    return found
