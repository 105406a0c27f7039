"""Made-up releases, a calm one and a hostile one, with everything that a report can be given."""

import json
from pathlib import Path

from report_data import (
    credit_plays,
    list_plays,
    make_message,
    make_play,
    merge,
    score_plays,
    write_dataset,
)

from starpo_train.gate import GateConfig, run_gate
from starpo_train.report import PolicyResult, ReportExtras

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
        config=GateConfig(bootstrap_resamples=200),
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
        config=GateConfig(bootstrap_resamples=200),
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
