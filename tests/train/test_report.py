"""The page on small datasets: what it shows, and that hostile content stays text."""

import json
import re
import shutil
from itertools import pairwise

import pytest
from report_data import (
    Outline,
    make_evaluation,
    make_play,
    merge,
    write_dataset,
)
from report_releases import make_hostile, make_release

from starpo_train.errors import DataError
from starpo_train.report import PolicyResult, render_report, svg
from starpo_train.report.page import SECTIONS
from starpo_train.report.pairs import choose_examples, shorten
from starpo_train.report.policies import build_strata, read_policy
from starpo_train.report.text import clean_text, make_breakable, mark_commands
from starpo_train.report.training import view_dataset, view_run


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> dict:
    return make_release(tmp_path_factory.mktemp("release"))


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
    assert not [name for name in attributes if name.startswith("on") or name == "src"]
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for _, attrs in outline.tags if "href" in attrs]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    # to a trace, by a click alone
    assert {link for link in links if not link.startswith("#")} == {
        f"https://viewer.example/trace/{'ab' * 16}"
    }
    assert not re.search(r"url\(|@import", page)


def test_page_forbids_scripts_and_network(page):
    """The policy is the first meta after the character set."""
    metas = [attrs for tag, attrs in Outline(page).tags if tag == "meta"]
    assert metas[1]["http-equiv"] == "Content-Security-Policy"
    assert metas[1]["content"].startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )


def test_page_has_its_sections_in_order(page, release):
    """The verdict's own sentence, then every section, each with how to read it."""
    outline = Outline(page)
    verdict = json.loads(release["verdict"].read_text())
    sections = [attrs["id"] for tag, attrs in outline.tags if tag == "section"]
    assert sections == [key for key in SECTIONS if key != "gaps"]
    assert outline.text.count("How to read this: ") == len(sections)
    headings = re.findall(r'<h2 id="(\w+)-h">([^<]+)</h2>', page)
    assert headings == [(key, SECTIONS[key]) for key in sections[1:]]
    places = [outline.text.index(part) for part in (verdict["sentence"], "Next:", "How to read")]
    assert places == sorted(places)
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_tables_and_drawings_have_names(page):
    """Every header cell says what it heads, every drawing what it shows."""
    tags = Outline(page).tags
    assert {attrs.get("scope") for tag, attrs in tags if tag == "th"} == {"col", "row"}
    drawings = [attrs for tag, attrs in tags if tag == "svg" and "overflow" not in attrs]
    unnamed = [a for a in drawings if a.get("role") == "img" and not a.get("aria-label")]
    assert unnamed == []
    assert sum(a.get("role") == "img" for a in drawings) > 30


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
    page = render_report(
        output=tmp_path / "out", **release | {"policies": policies, "extras": None}
    ).read_text()
    assert "other data than this page shows for: Other." in Outline(page).text
    assert "other data" not in render_report(output=tmp_path / "out", **release).read_text()


def test_hostile_content_stays_text(tmp_path):
    """Every text that data can carry: the page keeps its tags and adds no attribute."""
    page = render_report(output=tmp_path / "bad.html", **make_hostile(tmp_path)).read_text("utf-8")
    outline = Outline(page)
    assert not {tag for tag, _ in outline.tags} & {"script", "img"}
    assert not [name for _, attrs in outline.tags for name in attrs if name.startswith("on")]
    links = [attrs["href"] for tag, attrs in outline.tags if tag == "a" and attrs["href"][0] != "#"]
    assert len(links) == 2
    assert {link.split("/{")[0][:18] for link in links} == {"https://x.example/"}
    assert outline.text.count("<script>alert(1)</script>") >= 60
    assert "{{ 7 * 7 }}" in outline.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)


def test_control_characters_become_visible():
    """Null and escape get their pictures, direction overrides their code point, CR goes."""
    assert clean_text("a\x00\x1b\u202e\r\n\tb\x7f") == "a␀␛⟨U+202E⟩\n\tb␡"
    assert clean_text("\ud800") == "?"
    assert clean_text(3) == 3


def build_tables(dataset):
    policy = PolicyResult(name="p", dataset=dataset, role="baseline")
    return build_strata([read_policy(policy, success_threshold=0.5, ood_cohorts=("far",))])


def test_policy_row_by_hand(tmp_path):
    """Wins 0, 1, 2 and 2 of 2: success 5/8; pass^2 2/4; 220 tokens; 2 steps at p95."""
    (table,) = build_tables(make_evaluation(tmp_path / "data", [0, 1, 2, 2]))
    (row,) = table.rows
    assert table.stratum == "all"
    assert row.success.value == 0.625
    assert (row.pass_k, row.k) == (0.5, 2)
    assert row.tokens_per_trace == 220.0
    assert row.steps_p95 == 2.0
    assert (row.num_tasks, row.num_trajectories) == (4, 8)


def test_out_of_distribution_has_a_table_of_its_own(tmp_path):
    """Solved inside, failed outside, by the cohort's name or the gate file: never a mean of both."""
    plays = [
        make_play("a", 0, 1.0, cohort="in"),
        make_play("b", 0, 0.0, cohort="OOD-x", turns=3),
        make_play("c", 0, 0.0, cohort="far"),
    ]
    tables = build_tables(write_dataset(tmp_path / "data", merge(plays)))
    assert [table.stratum for table in tables] == ["id", "ood"]
    rows = [table.rows[0] for table in tables]
    assert [(r.success.value, r.num_tasks, r.steps_p95) for r in rows] == [(1.0, 1, 2), (0.0, 2, 3)]


def test_dataset_view_by_hand(release):
    """Funnel, rejected spans, why trajectories are not better, and policy lag where it is known."""
    view = view_dataset(release["dataset"])
    assert [(s.name, s.count) for s in view.spans] == [("read", 100), ("used", 90)]
    assert [s.count for s in view.trajectories] == [8, 7, 7, 7]
    assert view.rejected == (("foreign_scope", 7),)
    assert view.reasons == (("no_reward", 1),)
    assert view.balanced is True
    assert (view.lag.low, view.lag.high) == (0, 2)
    assert (view.lag.num_known, view.lag.num_unknown) == (5, 3)
    assert re.findall("<title>(\\d)</title>", view.lag.histogram) == ["1", "2", "2"]
    assert view.train_tasks == {"task-00", "train-a", "train-b", "train-c", "train-d"}


def test_unbalanced_accounting_is_called_that(release, tmp_path):
    """A span that is neither used, rejected nor a duplicate is visible."""
    dataset = shutil.copytree(release["dataset"], tmp_path / "data")
    file = dataset / "manifest.json"
    values = json.loads(file.read_text())
    values["accounting"]["spans_read"] = 101
    file.write_text(json.dumps(values))
    assert view_dataset(dataset).balanced is False
    del values["accounting"]
    file.write_text(json.dumps(values))
    assert view_dataset(dataset).balanced is None


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
        {"event": "rollback", "step": 2, "checkpoint": "step_000001"},
        {"event": "no_rollback", "step": 2, "checkpoint": "step_000002"},
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
    assert view.rollbacks[0] == ("went back", "from step 2: the result is step_000001")
    what, text = view.rollbacks[1]
    assert (what, text.endswith("the result is step_000002")) == ("could not go back", True)
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
    assert ">went back</span> from step 2: the result is step_000001" in page


def test_pairs_are_the_worst_losses_and_one_gain(release):
    """2 -> 0 is a loss, 0 -> 2 the gain; ties by name; each side shows its usual result."""
    baseline, candidate = release["policies"]
    examples = choose_examples(baseline, candidate, success_threshold=0.5)
    assert [(e.label, e.task_id, e.change) for e in examples] == [
        ("lost", "ood-task-03", -1.0),
        ("lost", "ood-task-07", -1.0),
        ("lost", "task-03", -1.0),
        ("gained", "ood-task-00", 1.0),
    ]
    assert [(p.solved, p.wins) for p in examples[0].plays] == [(True, "2 of 2"), (False, "0 of 2")]
    assert [(p.solved, p.wins) for p in examples[3].plays] == [(False, "0 of 2"), (True, "2 of 2")]


def test_pairs_part_where_something_else_is_done(tmp_path):
    """Other thoughts are no difference, another call is; so is a run that goes on."""
    plays = {"old": make_play("t", 0, 1.0, turns=3), "new": make_play("t", 0, 0.0, turns=3)}
    for turn in plays["new"]["turns"]:
        turn["reasoning"] = "something else entirely"
    plays["new"]["turns"][1]["tool_calls"][0]["arguments"] = '{"to": "west"}'
    plays["short"] = make_play("t", 0, 0.0, turns=2)
    policies = {
        name: PolicyResult(name=name, dataset=write_dataset(tmp_path / name, play), role="baseline")
        for name, play in plays.items()
    }

    def find(other: str) -> int | None:
        (example,) = choose_examples(policies["old"], policies[other], success_threshold=0.5)
        return example.parts_at

    assert (find("new"), find("short")) == (1, 2)


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
        ("thinking", None, "thought 0 of ood-task-03/0"),
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


def test_code_and_joints_are_marked_in_escaped_text():
    """Backquotes become code, names may break; neither lets markup through."""
    assert mark_commands("run `a <b>` & go") == "run <code>a &lt;b&gt;</code> &amp; go"
    assert make_breakable("get_user.<x>") == "get_<wbr>user.&lt;x&gt;"


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
    assert "A verdict and its forest plot starpo-train gate" in text
    assert "Credit of StarPO starpo-train credit" in text
    assert "Training curves --run RUN_DIR" in text
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
    words = svg.draw_interval(
        low=2.0, value=3.0, high=4.0, scale=scale, middle=8, css="pass", words="far"
    )
    assert 'text-anchor="end">far</text>' in words
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
