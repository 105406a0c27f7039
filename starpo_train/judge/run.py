"""Judge file -> anchors, scores, canaries -> scores.parquet, summary.json, late rewards.

What is answered is kept, so a run that was stopped, ran out of budget or lost its endpoint goes on
where it was when it is started again.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from starpo_train.dataset import Manifest, read_manifest
from starpo_train.errors import ConfigError
from starpo_train.judge.anchors import Anchor, check_anchors, read_anchors
from starpo_train.judge.canaries import choose_sample, run_canaries
from starpo_train.judge.endpoint import Endpoint
from starpo_train.judge.items import ItemRules, count_items, read_items
from starpo_train.judge.judge import Judge
from starpo_train.judge.patience import Clock, Patience
from starpo_train.judge.records import hash_json
from starpo_train.judge.rewards import write_rewards
from starpo_train.judge.rubric import read_rubric
from starpo_train.judge.settings import JudgeConfig
from starpo_train.judge.store import Budget
from starpo_train.judge.summary import UNFINISHED, Findings, Judged, summarize_judge
from starpo_train.judge.table import SCORES_FILE, write_scores
from starpo_train.tomlfile import to_json_dict
from starpo_train.wholefile import write_atomically

SUMMARY_FILE: Final = "summary.json"
CACHE_FILE: Final = "cache.sqlite"
_SAMPLE_HELD: Final = 256
"""Items of which the texts are held, until it is known that they are in no sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeProgress:
    """How far a run is."""

    stage: str
    """anchors | items | canaries | done."""
    num_done: int = 0
    num_items: int = 0
    num_scored: int = 0
    num_cached: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRun:
    """What a run found."""

    summary: dict[str, Any]
    scores_path: Path
    summary_path: Path
    is_interrupted: bool

    @property
    def is_valid(self) -> bool:
        """Whether the verdict is VALID."""
        return self.summary["verdict"] == "VALID"


def run_judge(
    config: JudgeConfig,
    *,
    progress: Callable[[JudgeProgress], None] | None = None,
    clock: Clock | None = None,
) -> JudgeRun:
    """Judge a dataset as the file says; Ctrl-C ends it with what there is.

    Raises:
        ConfigError, DataError: something that the file names cannot be used.
        JudgeError: the endpoint takes no request at all, or rewards could not be written.
    """
    report = progress or (lambda _: None)
    manifest = read_manifest(config.judge.dataset)
    rules = read_rules(config)
    references = _read_references(config.items.references)
    anchors = _read_anchors(config)
    try:
        config.judge.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"judge.output = {config.judge.output}: no folder ({error}).") from None
    with closing(build_judge(config, ledger=_name_ledger(config, manifest), clock=clock)) as judge:
        found = Findings(num_items=count_items(manifest, rules))
        try:
            _judge_everything(judge, config, found, anchors, manifest, references, report)
        except KeyboardInterrupt:
            found.is_interrupted = True
        summary = summarize_judge(judge, config, manifest, found)
    scores_path = config.judge.output / SCORES_FILE
    if found.judged or not scores_path.exists():  # a judge that failed its anchors scored nothing
        write_scores(scores_path, found.judged)
    if config.rewards.store is not None:
        summary["rewards"] = _write_rewards(config, judge, found.judged, summary)
    summary_path = config.judge.output / SUMMARY_FILE
    write_atomically(summary_path, json.dumps(summary, indent=2) + "\n")
    return JudgeRun(
        summary=summary,
        scores_path=scores_path,
        summary_path=summary_path,
        is_interrupted=found.is_interrupted,
    )


def build_judge(
    config: JudgeConfig, *, ledger: str | None = None, clock: Clock | None = None
) -> Judge:
    """The judge that a file describes, for evaluators too.

    Raises:
        ConfigError: no such rubric.
    """
    judge, budget = config.judge, config.budget
    return Judge(
        Endpoint(
            model=judge.model,
            base_url=judge.base_url,
            api_key_env=judge.api_key_env,
            temperature=judge.temperature,
            max_output_tokens=judge.max_output_tokens,
            seed=judge.seed,
            token_limit=judge.token_limit,
            timeout_s=budget.timeout_s,
            structured=judge.structured,
        ),
        read_rubric(judge.rubric),
        cache=judge.cache or judge.output / CACHE_FILE,
        snapshot=judge.snapshot,
        served_as=judge.served_as,
        budget=Budget(
            max_calls=budget.max_calls,
            max_tokens=budget.max_tokens,
            max_cost=budget.max_cost,
            input_price=budget.input_price,
            output_price=budget.output_price,
        ),
        patience=Patience(
            requests_per_s=budget.requests_per_s,
            attempts=budget.attempts,
            longest_wait_s=budget.longest_wait_s,
        ),
        concurrency=budget.concurrency,
        shows_reasoning=judge.reasoning == "show",
        max_chars=config.items.max_chars,
        ledger=ledger,
        clock=clock,
    )


def read_rules(config: JudgeConfig) -> ItemRules:
    """Settings -> what becomes an item."""
    items = config.items
    return ItemRules(
        scope=items.scope, split=items.split, plan=items.plan, longest_text=items.longest_text
    )


def _judge_everything(
    judge: Judge,
    config: JudgeConfig,
    found: Findings,
    anchors: Sequence[Anchor],
    manifest: Manifest,
    references: dict[str, str],
    report: Callable[[JudgeProgress], None],
) -> None:
    """Anchors first: a judge that has drifted is not worth its money."""
    if anchors:
        report(JudgeProgress(stage="anchors", num_items=len(anchors)))
        found.anchors = check_anchors(judge, anchors, tolerance=config.anchors.tolerance)
        if not found.anchors.is_stable and config.anchors.on_drift == "stop":
            return
    sample: Judged = []
    num_canaries = config.canaries.items
    num_scored = num_cached = 0
    report(JudgeProgress(stage="items", num_items=found.num_items))
    for item, score in judge.score_all(
        read_items(manifest, read_rules(config), references=references)
    ):
        found.judged.append((replace(item, parts={}), score))  # texts are not held
        if score.score is not None:
            sample.append((item, score))
        if len(sample) > _SAMPLE_HELD + 2 * num_canaries:
            chosen = {item.item_id for item, _ in choose_sample(sample, num_items=num_canaries)}
            sample = [pair for pair in sample if pair[0].item_id in chosen]
        num_scored += score.score is not None
        num_cached += score.is_cached
        report(
            JudgeProgress(
                stage="items",
                num_done=len(found.judged),
                num_items=found.num_items,
                num_scored=num_scored,
                num_cached=num_cached,
            )
        )
    if config.canaries.items and not any(s.status in UNFINISHED for _, s in found.judged):
        found.canaries = run_canaries(
            judge,
            sample,
            num_items=config.canaries.items,
            tolerance=config.canaries.tolerance,
            progress=lambda done, total: report(
                JudgeProgress(stage="canaries", num_done=done, num_items=total)
            ),
        )


def _write_rewards(
    config: JudgeConfig, judge: Judge, judged: Judged, summary: dict[str, Any]
) -> dict[str, Any]:
    """Rewards of a run that can be relied on; none of any other."""
    store = config.rewards.store
    if store is None or summary["verdict"] != "VALID":
        return {"num_written": 0, "reason": "the verdict is INCONCLUSIVE"}
    num_written = write_rewards(
        store,
        judged,
        judge.rubric,
        name=config.rewards.name or judge.rubric.name,
        must_sign=config.rewards.sign,
    )
    return {"num_written": num_written, "store": str(store)}


def _name_ledger(config: JudgeConfig, manifest: Manifest) -> str:
    """Whose budget: this dataset's version, judged by this rubric in this way."""
    judge = to_json_dict(config)["judge"]
    judge = {key: judge[key] for key in ("model", "snapshot", "rubric", "temperature")}
    return hash_json([judge, asdict(read_rules(config)), manifest.digest])


def _read_anchors(config: JudgeConfig) -> list[Anchor]:
    if config.anchors.file is None:
        return []
    return read_anchors(config.anchors.file, expected_sha256=config.anchors.sha256)


def _read_references(path: Path | None) -> dict[str, str]:
    """Task -> reference; a reference of null is none."""
    if path is None:
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
        found = [(str(row["task_id"]), row["reference"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'items.references = {str(path)!r}: {error!r}; write {{"task_id", "reference"}} a line.'
        ) from None
    repeated = [task for task, count in Counter(task for task, _ in found).items() if count > 1]
    if repeated:
        raise ConfigError(
            f"items.references = {str(path)!r}: two references for task {repeated[0]!r}; keep one."
        )
    return {task: str(reference) for task, reference in found if reference is not None}
