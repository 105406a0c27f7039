"""Hand-made evaluations for the tests of the report, and what reads its page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
from deltalake import write_deltalake

from starpo_trace.convert.columns import build_frame
from starpo_trace.schema import DATASET_SCHEMA_VERSION, TABLES
from starpo_train.gate import GateConfig, run_gate
from starpo_train.report import PolicyResult, ReportExtras

VOID = {
    "wbr",
    "meta",
    "circle",
    "path",
    "line",
    "rect",
    "polygon",
    "polyline",
    "link",
    "br",
    "hr",
    "img",
}


class Outline(HTMLParser):
    """Tags, attributes and text of a page; fails when tags do not match."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def write_dataset(path: Path, tables: dict[str, list[dict]], **manifest) -> Path:
    """Rows by table -> a dataset folder; columns that are left out are null."""
    path.mkdir(parents=True)
    for name, columns in TABLES.items():
        write_deltalake(str(path / name), build_frame(tables.get(name, []), columns))
    values = {
        "schema_version": DATASET_SCHEMA_VERSION,
        "digest": f"digest-of-{path.name}",
        "tables": {name: {"path": name, "version": 0} for name in TABLES},
        **manifest,
    }
    (path / "manifest.json").write_text(json.dumps(values))
    return path


def make_play(task: str, attempt: int, reward: float | None, *, turns=2, **extra) -> dict:
    """One trajectory with its turns, messages and states, by table."""
    name = f"{task}/{attempt}"
    rows = {
        "trajectories": [
            {
                "trajectory_id": name,
                "task_id": task,
                "attempt": attempt,
                "policy_id": "policy-1",
                "trace_id": "ab" * 16,
                "end": "terminated",
                "num_turns": turns,
                "num_steps": turns,
                "reward": reward,
                "input_tokens": 100 * turns,
                "output_tokens": 10 * turns,
                "usable_for": "rl" if reward is not None else "none",
                "reasons": [] if reward is not None else ["no_reward"],
                "split": "train",
                **extra,
            }
        ],
        "turns": [],
        "messages": [],
        "states": [],
    }
    text = "You walk on ice."
    node = {"trajectory_id": name, "node_id": f"{name}/p", "depth": 0, "role": "system"}
    rows["messages"].append(node | {"first_turn": 0, "message": make_message("system", text)})
    for turn in range(turns):
        rows["turns"].append(
            {
                "trajectory_id": name,
                "turn": turn,
                "step": turn,
                "model": "tiny",
                "outcome": "ok",
                "reasoning": f"thought {turn} of {name}",
                "text": None,
                "tool_calls": [{"id": "c", "name": "move", "arguments": '{"to": "east"}'}],
            }
        )
        seen = {
            "trajectory_id": name,
            "node_id": f"{name}/{turn}",
            "depth": turn + 1,
            "role": "tool",
            "first_turn": turn + 1 if turn + 1 < turns else None,
            "message": json.dumps(
                {
                    "role": "tool",
                    "parts": [{"type": "tool_call_response", "id": "c", "response": f"saw {turn}"}],
                }
            ),
        }
        rows["messages"].append(seen)
        state = {"trajectory_id": name, "step": turn, "name": "lake", "time_ns": turn}
        rows["states"].append(state | {"value": json.dumps({"column": turn}), "hash": "h"})
    return rows


def make_message(role: str, text: str) -> str:
    return json.dumps({"role": role, "parts": [{"type": "text", "content": text}]})


def merge(plays: list[dict]) -> dict[str, list[dict]]:
    return {name: [row for play in plays for row in play[name]] for name in plays[0]}


def make_evaluation(path: Path, wins, **extra) -> Path:
    """`wins[t]` is how many of 2 attempts at task t succeed."""
    plays = [
        make_play(f"task-{task:02d}", attempt, float(attempt < count), **extra)
        for task, count in enumerate(wins)
        for attempt in range(2)
    ]
    return write_dataset(path, merge(plays))


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><script>alert(1)</script>",
    "</title><svg onload=alert(1)>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "<!--", "]]>", "</details></section>",
    "\x00\x1b[31m\x07",
    "\u202etxt.exe",
]  # fmt: skip


def score_plays(path: Path, plays: list[dict], evaluator: str, cohort: str | None = None) -> Path:
    """What `starpo-train score` would write: each run's reward as its score."""
    rows = [
        {
            "trajectory_id": row["trajectory_id"],
            "task_id": row["task_id"],
            "cohort": row.get("cohort", cohort),
            "evaluator": evaluator,
            "score": row["reward"],
        }
        for play in plays
        for row in play["trajectories"]
    ]
    pl.DataFrame(rows, schema_overrides={"cohort": pl.String}).write_parquet(path)
    return path


def credit_plays(path: Path, plays: list[dict], credit, kinds=("planner", "finalizer")) -> Path:
    """What `starpo-train credit` would write: `credit(reward, turn)`; the last turn has kinds[1]."""
    rows = [
        {
            "trajectory_id": row["trajectory_id"],
            "turn": turn,
            "kind": kinds[1] if turn + 1 == row["num_turns"] else kinds[0],
            "estimator": "returns",
            "advantage": credit(row["reward"], turn),
        }
        for play in plays
        for row in play["trajectories"]
        for turn in range(row["num_turns"])
    ]
    pl.DataFrame(rows, schema_overrides={"advantage": pl.Float64}).write_parquet(path)
    return path


def list_plays(wins, **extra) -> list[dict]:
    """`wins[t]` is how many of 2 attempts at task t succeed."""
    return [
        make_play(f"task-{task:02d}", attempt, float(attempt < count), **extra)
        for task, count in enumerate(wins)
        for attempt in range(2)
    ]


def write_judge(path: Path, text: str = "refund_policy") -> Path:
    """What `starpo-train judge` would say of itself."""
    path.mkdir(parents=True)
    pin = {
        "model": text,
        "prompt_hash": "ab",
        "temperature": 0.0,
        "parser": "json-1",
        "digest": "d",
    }
    summary = {
        "verdict": "INCONCLUSIVE",
        "reasons": [f"the judge has drifted: {text}"],
        "rubric": text,
        "judge_id": f"{text}#d",
        "pin": pin,
        "num_items": 9,
        "num_scored": 8,
        "score_mean": 0.75,
        "anchors": {"is_stable": False},
        "dataset": {"digest": text},
    }
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def write_checkpoint(run: Path, dataset_digest: str) -> None:
    """The end of a training run: final.json, and a COMMIT that says where its weights come from."""
    folder = run / "checkpoints" / "step_000003"
    folder.mkdir(parents=True)
    (run / "final.json").write_text(
        json.dumps({"checkpoint": "checkpoints/step_000003", "step": 3})
    )
    lineage = {
        "starpo_version": "0.1.0",
        "base_model": "models/base",
        "dataset": {"path": "train", "digest": dataset_digest},
        "config": {"algorithm": {"name": "starpo"}, "run": {"seed": 7}},
    }
    (folder / "COMMIT").write_text(json.dumps({"lineage": lineage}))


def make_release(tmp_path: Path) -> dict:
    """Everything a report can be given, of a made-up release: the arguments of `render_report`."""
    cohorts = {"cohort": "refunds"}, {"cohort": "ood-new"}
    plays = {
        name: [
            *list_plays(wins, **cohorts[0]),
            *_rename(list_plays(wins[:8], **cohorts[1]), "ood-"),
        ]
        for name, wins in (("old", [0, 1, 2, 2] * 10), ("new", [2, 1, 2, 0] * 10))
    }
    data = {name: write_dataset(tmp_path / name, merge(each)) for name, each in plays.items()}
    run_gate(
        baseline=data["old"],
        candidate=data["new"],
        evidence={"filtered_bc": data["old"]},
        config=GateConfig(bootstrap_resamples=100),
        output=tmp_path / "gate",
    )
    verdict = json.loads((tmp_path / "gate" / "verdict.json").read_text())
    verdict["ope"] = {
        "outcome": "inconclusive",
        "statement": "Off-policy evaluation is inconclusive: few runs.",
        "behaviour": 0.5,
        "estimates": [
            {"name": "dr", "value": 0.61, "interval": [0.4, 0.8], "reason": None},
            {"name": "wis", "value": None, "interval": None, "reason": "too few runs"},
        ],
    }
    (tmp_path / "gate" / "verdict.json").write_text(json.dumps(verdict))
    run = tmp_path / "run-starpo"
    run.mkdir()
    records = [
        {"event": "start", "num_trajectories": 7, "total_steps": 3},
        {"step": 1, "loss": 0.5, "entropy": None, "grad_norm": 2.0, "algorithm": "starpo"},
        {"step": 2, "loss": 0.25, "entropy": 1.5, "grad_norm": 1.0, "algorithm": "starpo"},
        {"event": "kl_ceiling", "step": 2},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"torn')
    (run / "run.toml").write_text('[run]\noutput = "somewhere"\n')
    write_checkpoint(run, "digest-of-train")
    train = [
        make_play("task-00", 0, 1.0, policy_lag=0),
        make_play("train-a", 0, 0.0, policy_lag=2),
        make_play("train-a", 1, 1.0, policy_lag=2),
        make_play("train-b", 0, 0.0, policy_lag=1),
        make_play("train-b", 1, 0.0, policy_lag=1),
        make_play("train-c", 0, 1.0),
        make_play("train-c", 1, 1.0),
        make_play("train-d", 0, None),
    ]
    dataset = write_dataset(
        tmp_path / "train",
        merge(train),
        accounting={
            "spans_read": 100,
            "spans_used": 90,
            "spans_rejected_by_reason": {"foreign_scope": 7},
            "duplicates": 3,
            "damaged_records": 0,
        },
    )
    names = {"old": "recorded policy", "new": "StarPO"}
    return {
        "policies": [
            PolicyResult(name=names["old"], dataset=data["old"], role="baseline"),
            PolicyResult(name=names["new"], dataset=data["new"], role="candidate"),
        ],
        "verdict": tmp_path / "gate" / "verdict.json",
        "runs": [run],
        "dataset": dataset,
        "title": "A made-up release",
        "extras": ReportExtras(
            scores={
                names[key]: score_plays(tmp_path / f"{key}-scores.parquet", each, "TrajectoryScore")
                for key, each in plays.items()
            },
            credit={
                names[key]: credit_plays(
                    tmp_path / f"{key}-credit.parquet", each, lambda r, t: r - 0.5 - 0.1 * t
                )
                for key, each in plays.items()
            },
            judges=(write_judge(tmp_path / "judged"),),
            trace_link="https://viewer.example/trace/{trace_id}",
        ),
    }


def make_hostile(tmp_path: Path) -> dict:
    """HOSTILE in every text that data can carry: the arguments of `render_report`."""
    bad = " ".join(HOSTILE)
    play = make_play(bad, 0, 1.0, cohort=bad, policy_id=bad, trace_id=bad, end=bad, reasons=[bad])
    for turn in play["turns"]:
        turn |= {"reasoning": bad, "text": bad, "model": bad, "error": bad}
        turn["tool_calls"] = [{"id": bad, "name": f"{turn['turn']} {bad}", "arguments": bad}]
    for row in play["messages"]:
        row |= {"message": make_message("tool", bad), "role": bad}
    for row in play["states"]:
        row |= {"name": bad, "value": bad * 3}
    plays = {
        "old": [play, make_play("calm", 0, 0.0, cohort="ood")],
        "new": [_fail(play), make_play("calm", 0, 0.0, cohort="ood")],
    }
    accounting = {"spans_rejected_by_reason": {bad: 1}, "spans_read": 2, "spans_used": 1}
    data = {
        key: write_dataset(
            tmp_path / key, merge(each), digest=f"{key} {bad}", accounting=accounting
        )
        for key, each in plays.items()
    }
    run = tmp_path / "run <script>"
    run.mkdir()
    start = {"event": "start", "reward_mean": bad, bad: bad, "surrogate": "\ud800"}
    step = {"step": 1, "loss": 1.0, "algorithm": bad}
    stop = {"event": "early_stop", "step": 1, "rule": bad, "reason": bad}
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, (start, step, stop))))
    (run / "run.toml").write_text(bad)
    write_checkpoint(run, bad)
    run_gate(
        baseline=data["old"],
        candidate=data["new"],
        evidence={bad: data["old"]},
        config=GateConfig(bootstrap_resamples=10),
        output=tmp_path,
    )
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    verdict |= {"sentence": bad, "reasons": [bad], "notes": [bad], "superiority": bad}
    verdict |= {"signature": bad, "created": bad, "starpo_version": bad}
    verdict["comparisons"][0] |= {"metric": bad, "stratum": bad, "note": bad}
    verdict["evidence"][0] |= {"statement": bad, "high": -0.1}
    verdict["looks"] |= {"mode": "sequential", "note": bad}
    verdict["preflight"] = [
        {"agent": "oracle", "num_tasks": 2, "wrong": [bad], "unplayed": [bad], "elsewhere": bad}
    ]
    verdict["ope"] = {
        "outcome": bad,
        "statement": bad,
        "estimates": [{"name": bad, "value": bad, "interval": [bad, bad], "reason": bad}],
    }
    verdict["inputs"]["baseline"]["digest"] = bad
    verdict["also_seen"]["checkpoints"] = {bad: {"weights_sha256": bad}}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    names = {"old": bad, "new": f"{bad} 2"}
    return {
        "policies": [
            PolicyResult(name=names["old"], dataset=data["old"], role="baseline"),
            PolicyResult(name=names["new"], dataset=data["new"], role="candidate"),
        ],
        "verdict": tmp_path / "verdict.json",
        "runs": [run],
        "dataset": data["old"],
        "title": bad,
        "extras": ReportExtras(
            scores={
                names[key]: score_plays(tmp_path / f"{key}-s.parquet", each, bad)
                for key, each in plays.items()
            },
            credit={
                names[key]: credit_plays(
                    tmp_path / f"{key}-c.parquet",
                    each,
                    lambda r, t: 1.0 - t,
                    kinds=(bad, f"{bad} 2"),
                )
                for key, each in plays.items()
            },
            judges=(write_judge(tmp_path / "judged", bad),),
            trace_link="https://x.example/'\"><script>alert(1)</script>/{trace_id}?a='onclick='alert(1)",
        ),
    }


def _fail(play: dict) -> dict:
    """The same run without its reward, so that it regressed."""
    return play | {"trajectories": [row | {"reward": 0.0} for row in play["trajectories"]]}


def _rename(plays: list[dict], prefix: str) -> list[dict]:
    """The same runs at tasks of other names."""
    text = json.dumps(plays).replace("task-", f"{prefix}task-")
    return json.loads(text)
