"""The page on small datasets: what it shows, and that hostile content stays text."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from deltalake import write_deltalake

from starpo_trace.convert.columns import build_frame
from starpo_trace.schema import DATASET_SCHEMA_VERSION, TABLES
from starpo_train.errors import DataError
from starpo_train.gate import GateConfig, run_gate
from starpo_train.report import PolicyResult, render_report, svg
from starpo_train.report.examples import choose_examples, shorten
from starpo_train.report.page import clean_text
from starpo_train.report.policies import summarize_policy
from starpo_train.report.training import view_dataset, view_run

VOID = {"meta", "circle", "path", "line", "rect", "polygon", "polyline", "link", "br", "hr", "img"}


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


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> dict:
    """Baseline, candidate, verdict, run and training dataset of a made-up release."""
    tmp_path = tmp_path_factory.mktemp("release")
    baseline = make_evaluation(tmp_path / "old", [0, 1, 2, 2] * 10)
    candidate = make_evaluation(tmp_path / "new", [2, 1, 2, 0] * 10)
    run_gate(
        baseline=baseline,
        candidate=candidate,
        evidence={},
        config=GateConfig(bootstrap_resamples=100),
        output=tmp_path / "gate",
    )
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
    plays = [
        make_play("task-00", 0, 1.0),
        make_play("train-a", 0, 0.0),
        make_play("train-a", 1, 1.0),
        make_play("train-b", 0, 0.0),
        make_play("train-b", 1, 0.0),
        make_play("train-c", 0, 1.0),
        make_play("train-c", 1, 1.0),
        make_play("train-d", 0, None),
    ]
    dataset = write_dataset(
        tmp_path / "train",
        merge(plays),
        accounting={
            "spans_read": 100,
            "spans_used": 90,
            "spans_rejected_by_reason": {"foreign_scope": 7},
            "duplicates": 3,
            "damaged_records": 0,
        },
    )
    return {
        "policies": [
            PolicyResult(name="recorded policy", dataset=baseline, role="baseline"),
            PolicyResult(name="StarPO", dataset=candidate, role="candidate"),
        ],
        "verdict": tmp_path / "gate" / "verdict.json",
        "runs": [run],
        "dataset": dataset,
        "title": "A made-up release",
    }


@pytest.fixture(scope="module")
def page(release, tmp_path_factory) -> str:
    return render_report(output=tmp_path_factory.mktemp("out"), **release).read_text(
        encoding="utf-8"
    )


def test_page_is_well_formed_and_needs_nothing(page):
    """Tags match; no script, link, form, event handler or address that a browser would fetch."""
    outline = Outline(page)
    names = {tag for tag, _ in outline.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base", "img"}
    attributes = {name for _, attrs in outline.tags for name in attrs}
    assert not [name for name in attributes if name.startswith("on") or name in ("src", "href")]
    assert not re.search(r"url\(|@import", page)


def test_page_forbids_scripts_and_network(page):
    """The policy is the first meta after the character set."""
    metas = [attrs for tag, attrs in Outline(page).tags if tag == "meta"]
    assert metas[1]["http-equiv"] == "Content-Security-Policy"
    assert metas[1]["content"].startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )


def test_page_shows_the_decision_first(page, release):
    """Order of the headings, and the verdict's own sentence above them."""
    text = Outline(page).text
    verdict = json.loads(release["verdict"].read_text())
    order = [
        verdict["sentence"],
        "What had to hold",
        "Policies",
        "Training",
        "Reward variance by group",
        "From spans to training data",
        "Baseline and candidate on the same task",
        "Provenance",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_page_warns_when_other_evidence_is_better(release, tmp_path):
    """A box under the verdict, and the usual margin beside one that was changed."""
    verdict = json.loads(release["verdict"].read_text())
    verdict["evidence"] = [
        {"name": "bc", "high": -0.02, "statement": "worse than bc by 6.0 points"},
        {"name": "prompt", "high": 0.02, "statement": "not distinguishable from prompt"},
    ]
    verdict["comparisons"][0]["margin"] = 0.2
    file = tmp_path / "verdict.json"
    file.write_text(json.dumps(verdict))
    page = render_report(output=tmp_path / "x.html", **release | {"verdict": file}).read_text()
    text = Outline(page).text
    assert page.count('class="alarm"') == 1
    assert "Warning: the candidate is worse than bc by 6.0 points." in text
    assert "(default -3.0 points)" in text
    assert text.count("(default ") == 1


def test_page_says_which_tasks_were_trained_on(page, release, tmp_path):
    """One evaluated task is in the training split: the page warns, and no longer says unseen."""
    assert "1 of the evaluated tasks were also trained on" in Outline(page).text
    unseen = render_report(output=tmp_path / "x.html", **release | {"dataset": None})
    assert "also trained on" not in unseen.read_text()


def test_page_shows_off_policy_evidence_below_the_verdict(release, tmp_path):
    """The statement of an ope.json that the gate was given, escaped like everything else."""
    verdict = json.loads(release["verdict"].read_text())
    verdict["ope"] = {"statement": "Off-policy evaluation is inconclusive: <few> runs."}
    file = tmp_path / "verdict.json"
    file.write_text(json.dumps(verdict))
    page = render_report(output=tmp_path / "x.html", **release | {"verdict": file}).read_text()
    assert "Off-policy evaluation is inconclusive: &lt;few&gt; runs." in page


def test_page_says_when_the_verdict_is_about_other_data(release, tmp_path):
    """A verdict made from another candidate is called that."""
    other = make_evaluation(tmp_path / "other", [1] * 8)
    policies = [
        release["policies"][0],
        PolicyResult(name="Other", dataset=other, role="candidate"),
    ]
    page = render_report(output=tmp_path / "out", **release | {"policies": policies}).read_text()
    assert "other data than this page shows for: Other." in Outline(page).text
    assert "other data" not in render_report(output=tmp_path / "out", **release).read_text()


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


def test_hostile_content_stays_text(tmp_path):
    """Every text that data can carry: the page keeps its tags and adds no attribute."""
    bad = " ".join(HOSTILE)
    play = make_play(bad, 0, 1.0, cohort=bad, policy_id=bad, trace_id=bad, end=bad, reasons=[bad])
    for turn in play["turns"]:
        turn |= {"reasoning": bad, "text": bad, "model": bad, "error": bad}
        turn["tool_calls"] = [{"id": bad, "name": bad, "arguments": bad}]
    for row in play["messages"]:
        row |= {"message": make_message("tool", bad), "role": bad}
    for row in play["states"]:
        row |= {"name": bad, "value": bad * 3}
    calm = make_play("calm", 0, 0.0, cohort="calm")
    tables = merge([play, calm])
    accounting = {"spans_rejected_by_reason": {bad: 1}, "spans_read": 2, "spans_used": 1}
    dataset = write_dataset(tmp_path / "data", tables, digest=bad, accounting=accounting)
    other = write_dataset(tmp_path / "other", tables, digest=f"other {bad}")
    run = tmp_path / "run <script>"
    run.mkdir()
    start = {"event": "start", "reward_mean": bad, bad: bad, "surrogate": "\ud800"}
    step = {"step": 1, "loss": 1.0, "algorithm": bad}
    (run / "metrics.jsonl").write_text(json.dumps(start) + "\n" + json.dumps(step))
    (run / "run.toml").write_text(bad)
    run_gate(
        baseline=other,
        candidate=dataset,
        evidence={bad: dataset},
        config=GateConfig(bootstrap_resamples=10),
        output=tmp_path,
    )
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    verdict |= {"sentence": bad, "reasons": [bad], "notes": [bad], "superiority": bad}
    verdict["comparisons"][0] |= {"metric": bad, "stratum": bad, "note": bad}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    sources = {
        "policies": [
            PolicyResult(name=bad, dataset=dataset, role="baseline"),
            PolicyResult(name=bad, dataset=dataset, role="candidate"),
        ],
        "verdict": tmp_path / "verdict.json",
        "runs": [run],
        "dataset": dataset,
    }
    page = render_report(output=tmp_path / "bad.html", title=bad, **sources).read_text("utf-8")
    outline = Outline(page)
    assert not {tag for tag, _ in outline.tags} & {"script", "img"}
    assert not [name for _, attrs in outline.tags for name in attrs if name.startswith("on")]
    assert outline.text.count("<script>alert(1)</script>") >= 20
    assert "{{ 7 * 7 }}" in outline.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)


def test_control_characters_become_visible():
    """Null and escape get their pictures, direction overrides their code point, CR goes."""
    assert clean_text("a\x00\x1b\u202e\r\n\tb\x7f") == "a␀␛⟨U+202E⟩\n\tb␡"
    assert clean_text("\ud800") == "?"
    assert clean_text(3) == 3


def test_policy_summary_by_hand(tmp_path):
    """Wins 0, 1, 2 and 2 of 2: success 5/8; pass^2 2/4; 220 tokens; 3 steps at p95."""
    dataset = make_evaluation(tmp_path / "data", [0, 1, 2, 2])
    policy = PolicyResult(name="p", dataset=dataset, role="baseline")
    summary = summarize_policy(policy, success_threshold=0.5, ood_cohorts=())
    assert summary.success.value == 0.625
    assert (summary.pass_k, summary.k) == (0.5, 2)
    assert summary.tokens_per_trace == 220.0
    assert summary.steps_p95 == 2.0
    assert (summary.num_tasks, summary.num_trajectories) == (4, 8)


def test_policy_summary_keeps_out_of_distribution_apart(tmp_path):
    """Solved inside, failed outside: never a mean of both."""
    plays = [make_play("a", 0, 1.0, cohort="in"), make_play("b", 0, 0.0, cohort="ood-x")]
    dataset = write_dataset(tmp_path / "data", merge(plays))
    policy = PolicyResult(name="p", dataset=dataset, role="baseline")
    summary = summarize_policy(policy, success_threshold=0.5, ood_cohorts=())
    assert (summary.success.value, summary.success_ood.value) == (1.0, 0.0)


def test_dataset_view_by_hand(release):
    """Funnel, rejected spans, why trajectories are not better, and groups by their rewards."""
    view = view_dataset(release["dataset"], success_threshold=0.5)
    assert [(s.name, s.count) for s in view.spans] == [("read", 100), ("used", 90)]
    assert [s.count for s in view.trajectories] == [8, 7, 7, 7]
    assert view.rejected == (("foreign_scope", 7),)
    assert view.reasons == (("no_reward", 1),)
    assert view.balanced is True
    assert {name: count for name, _, count in view.groups.shares} == {
        "all failed": 1,
        "varied": 1,
        "all solved": 1,
        "one attempt only": 1,
    }
    assert view.groups.largest_deviation == 0.5


def test_unbalanced_accounting_is_called_that(release, tmp_path):
    """A span that is neither used, rejected nor a duplicate is visible."""
    dataset = shutil.copytree(release["dataset"], tmp_path / "data")
    file = dataset / "manifest.json"
    values = json.loads(file.read_text())
    values["accounting"]["spans_read"] = 101
    file.write_text(json.dumps(values))
    assert view_dataset(dataset, success_threshold=0.5).balanced is False
    del values["accounting"]
    file.write_text(json.dumps(values))
    assert view_dataset(dataset, success_threshold=0.5).balanced is None


def test_run_view_skips_events_and_gaps(release):
    """Two steps, one of them without entropy; the torn last line is left out."""
    view = view_run(release["runs"][0])
    assert view.num_steps == 2
    assert {c.title: (c.low, c.high, c.last) for c in view.curves} == {
        "Loss": (0.25, 0.5, 0.25),
        "Entropy": (1.5, 1.5, 1.5),
        "Gradient norm": (1.0, 2.0, 1.0),
    }
    assert view.facts == (("trajectories", 7),)


def test_run_view_shows_measurements_and_marks_where_a_run_was_stopped(tmp_path):
    """Mutual information has a curve of its own steps; the stop is named, and a line in every curve."""
    at = {"epoch": 0, "rule": "gradient_spike", "reason": "three <b>norms</b>"}
    records = [
        {"event": "start", "num_trajectories": 7},
        {"event": "diagnostics", "step": 0, "mi_per_sequence": 2.0, "retrieval_at_1": 0.75},
        {"step": 1, "loss": 0.5, "in_group_reward_std": 0.25},
        {"event": "alarm", "step": 1, **at},
        {"step": 2, "loss": 0.25, "in_group_reward_std": 0.5},
        {"event": "diagnostics", "step": 2, "mi_per_sequence": 1.0, "retrieval_at_1": 0.5},
        {"event": "early_stop", "step": 2, **at},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    view = view_run(tmp_path)
    assert view.num_steps == 2
    assert {c.title: (c.low, c.high, c.last) for c in view.curves} == {
        "Loss": (0.25, 0.5, 0.25),
        "Reward deviation": (0.25, 0.5, 0.5),
        "Mutual information": (1.0, 2.0, 1.0),
        "Prompt found": (0.5, 0.75, 0.5),
    }
    assert [ended for ended, _ in view.stops] == [False, True]
    assert view.stops[1][1] == "step 2, gradient_spike: three <b>norms</b>"
    places = [re.findall(r'class="margin" x1="([\d.]+)%"', c.picture) for c in view.curves]
    assert places == [["0.0", "100.0"], ["0.0", "100.0"], ["50.0", "100.0"], ["50.0", "100.0"]]
    page = render_report(
        output=tmp_path / "page.html",
        policies=[],
        verdict=None,
        runs=[tmp_path],
        dataset=None,
        title="x",
    ).read_text()
    assert ">stopped early</span> step 2, gradient_spike: three &lt;b&gt;norms" in page


def test_examples_are_the_gain_the_loss_and_the_unchanged(release):
    """0 -> 2 is the gain, 2 -> 0 the loss, 2 -> 2 solved by both."""
    baseline, candidate = release["policies"]
    examples = choose_examples(baseline, candidate, success_threshold=0.5)
    assert [(e.label, e.task_id) for e in examples] == [
        ("gained", "task-00"),
        ("lost", "task-03"),
        ("both solved", "task-02"),
    ]
    assert [(p.solved, p.wins) for p in examples[0].plays] == [(False, "0 of 2"), (True, "2 of 2")]


def test_example_steps_in_the_order_of_the_run(release):
    """Prompt and state, then thinking and call, then what came back."""
    baseline, candidate = release["policies"]
    play = choose_examples(baseline, candidate, success_threshold=0.5)[0].plays[0]
    first, second = play.steps
    assert [(b.kind, b.text) for b in first.before] == [
        ("prompt", "You walk on ice."),
        ("state", '{"column": 0}'),
    ]
    assert [(b.kind, b.name, b.text) for b in first.action] == [
        ("thinking", None, "thought 0 of task-00/0"),
        ("calls", "move", '{"to": "east"}'),
    ]
    assert [b.text for b in first.after] == ["saw 0"]
    assert [b.text for b in second.before] == ['{"column": 1}']
    assert [b.text for b in second.after] == ["saw 1"]


def test_long_text_says_what_is_left_out():
    """Cut at the limit, with the count of the rest."""
    assert shorten("abc", limit=3) == "abc"
    assert shorten("x" * 1203, limit=3) == "xxx … 1,200 more characters"


def test_missing_inputs_are_errors_and_leave_nothing(release, tmp_path):
    """A missing verdict, a broken one and a missing run name the file; no page appears."""
    target = tmp_path / "page.html"
    with pytest.raises(DataError, match="no verdict here"):
        render_report(output=target, **release | {"verdict": tmp_path / "absent.json"})
    (tmp_path / "broken.json").write_text('{"verdict": "MAYBE"}')
    with pytest.raises(DataError, match="verdict is 'MAYBE'"):
        render_report(output=target, **release | {"verdict": tmp_path / "broken.json"})
    with pytest.raises(DataError, match="no training run here"):
        render_report(output=target, **release | {"runs": [tmp_path]})
    assert not target.exists()


def test_page_without_verdict_runs_or_dataset(release, tmp_path):
    """What is not given is left out, and the banner says that nothing was decided."""
    page = render_report(
        output=tmp_path / "page.html",
        policies=release["policies"],
        verdict=None,
        runs=[],
        dataset=None,
        title="Only policies",
    ).read_text()
    text = Outline(page).text
    assert "NO VERDICT" in text
    assert "What had to hold" not in text
    assert "From spans to training data" not in text
    empty = render_report(
        output=tmp_path / "empty.html", policies=[], verdict=None, runs=[], dataset=None, title="x"
    )
    assert "NO VERDICT" in Outline(empty.read_text()).text


def test_scale_places_values_by_hand():
    """-2..2: zero is the middle, values beyond are held at the edges."""
    scale = svg.Scale(low=-2.0, high=2.0)
    assert [scale.place(x) for x in (-3, -2, 0, 1, 5)] == [0.0, 0.0, 50.0, 75.0, 100.0]


def test_interval_off_the_scale_ends_in_an_arrow():
    """Unbounded below: an arrow at 0%; the bounded end has a cap, the point its dot."""
    scale = svg.Scale(low=0.0, high=1.0)
    drawing = svg.draw_interval(low=None, value=0.5, high=0.75, scale=scale, middle=8, css="pass")
    assert 'x="0.0%" y="8" overflow="visible"><path class="cap" d="M0 0l7 -5v10z"' in drawing
    assert 'x="75.0%" y="8" overflow="visible"><path class="cap" d="M-1 -5h2v10h-2z"' in drawing
    assert 'cx="50.0%"' in drawing
    beyond = svg.draw_interval(low=2.0, value=3.0, high=4.0, scale=scale, middle=8, css="pass")
    assert "circle" not in beyond
    assert beyond.count("<path") == 1


def test_curve_spans_the_drawing():
    """First point at the left, last at the right; the larger value is higher up (smaller y)."""
    drawing = svg.draw_curve([(1, 0.0), (2, 1.0)], label="x")
    assert 'points="0.0,92.0 1000.0,8.0"' in drawing
    flat = svg.draw_curve([(5, 2.0)], label="x")
    assert 'cx="50.0%" cy="50.0%"' in flat


def test_labels_of_drawings_are_escaped():
    """A label with a quote cannot leave its attribute."""
    drawing = svg.draw_meter(0.5, label='"><script>')
    assert "<script>" not in drawing
    assert 'width="50.0%"' in drawing
