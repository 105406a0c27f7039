"""The verdict's banner, the evidence beside it, links and provenance, by hand-made records."""

import json

import pytest
from report_data import list_plays, merge, write_dataset
from report_releases import HOSTILE, make_release, write_checkpoint

from starpo_train.errors import ConfigError, DataError
from starpo_train.gate import GateConfig, GateExtras, run_gate
from starpo_train.report import check_trace_link
from starpo_train.report.evidence import view_evidence
from starpo_train.report.inputs import link_trace
from starpo_train.report.provenance import collect_sources, trace_checkpoint
from starpo_train.report.verdict import check_signature, read_verdict, view_verdict


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> dict:
    return make_release(tmp_path_factory.mktemp("release"))


# Verdict ----------------------------------------------------------------------------------------


def decide(tmp_path, **changes):
    """A verdict of equal policies, changed -> its banner."""
    plays = list_plays([0, 1, 2, 2] * 10)
    for name in ("old", "new"):
        write_dataset(tmp_path / name, merge(plays))
    run_gate(
        baseline=tmp_path / "old",
        candidate=tmp_path / "new",
        evidence={},
        config=GateConfig(bootstrap_resamples=200),
        output=tmp_path / "gate",
    )
    file = tmp_path / "gate" / "verdict.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return view_verdict(read_verdict(tmp_path / "gate"), signature=None)


def test_next_step_of_each_verdict(tmp_path):
    """Ship, do not, or how many more tasks; broken tasks come first."""
    comparison = {"metric": "success", "stratum": "ood", "relative": False, "baseline": 0.5}
    comparison |= {"higher_is_better": True, "candidate": 0.5, "change": 0.0, "low": -0.1}
    comparison |= {"high": 0.1, "margin": 0.03, "outcome": "unclear", "decides": True}
    comparison |= {"num_tasks": 40, "tasks_needed": 1500}
    steps = {
        "PROMOTE": "Ship exactly the weights that were evaluated",
        "BLOCK": "Do not ship. Start with the first reason",
        "INCONCLUSIVE": "about 1,500 tasks out of distribution, 1,460 more than the 40 so far (new",
    }
    for number, (verdict, words) in enumerate(steps.items()):
        changes = {"verdict": verdict, "tasks_needed": 1500, "comparisons": [comparison]}
        assert words in decide(tmp_path / str(number), **changes).next_step
    broken = [{"agent": "null", "num_tasks": 9, "wrong": ["t"], "unplayed": [], "elsewhere": None}]
    banner = decide(tmp_path / "broken", verdict="INCONCLUSIVE", preflight=broken)
    assert banner.next_step.startswith("Repair or leave out the tasks")
    assert "gate --baseline" in view_verdict(None, signature=None).next_step


def test_checks_say_how_far_the_verdict_can_be_relied_on(tmp_path):
    """Preflight not run, half run and passed; the first look, a second one, and an e-process."""

    def state(number, **changes):
        checks = decide(tmp_path / str(number), **changes).checks
        return {check.name: (check.css, check.state) for check in checks}

    oracle, null = (
        {"agent": agent, "num_tasks": 9, "wrong": [], "unplayed": [], "elsewhere": None}
        for agent in ("oracle", "null")
    )
    assert state(0) == {"Preflight": ("reported", "not run"), "Looks": ("pass", "first look")}
    assert state(1, preflight=[oracle])["Preflight"] == ("unclear", "half run")
    assert state(2, preflight=[oracle, null])["Preflight"] == ("pass", "passed")
    again = {"mode": "once", "number": 2, "earlier": 1}
    assert state(3, looks=again)["Looks"] == ("unclear", "look 2")
    looks = {"mode": "sequential", "number": 3, "earlier": 2, "note": "Once was looked before."}
    banner = decide(tmp_path / "4", looks=looks, superiority_p_value=0.04)
    assert banner.checks[1].state == "look 3, sequential"
    assert banner.checks[1].detail == (
        "The bounds hold at every look. The e-process against “no better” stands at 25 (20 is "
        "proof). Once was looked before."
    )


def test_signature_is_verified_not_verified_and_broken(tmp_path, monkeypatch):
    """With the key, without it, with another one, after an edit, and when there is none."""
    monkeypatch.delenv("STARPO_VERDICT_KEY", raising=False)
    monkeypatch.delenv("STARPO_VERDICT_KEY_FILE", raising=False)
    keys = {name: tmp_path / f"{name}.keys" for name in ("ci", "other")}
    for number, (name, path) in enumerate(keys.items()):
        path.write_text(f"{name} {number + 1:064x}\n")
    plays = list_plays([0, 1, 2, 2] * 10)
    data = {name: write_dataset(tmp_path / name, merge(plays)) for name in ("old", "new")}
    run_gate(
        baseline=data["old"],
        candidate=data["new"],
        evidence={},
        config=GateConfig(bootstrap_resamples=200),
        output=tmp_path / "gate",
        extras=GateExtras(key_file=keys["ci"]),
    )
    file = tmp_path / "gate" / "verdict.json"

    def check(key):
        found = check_signature(tmp_path / "gate", read_verdict(file), key)
        return found.css, found.state, found.detail

    assert check(keys["ci"])[:2] == ("pass", "verified")
    assert check(None)[:2] == ("unclear", "signed, not verified here")
    assert check(keys["other"])[:2] == ("fail", "broken")
    assert "key ci is not among the keys" in check(keys["other"])[2]
    signed = file.read_text()
    file.write_text(json.dumps(json.loads(signed) | {"sentence": "All is well."}))
    assert check(keys["ci"])[:2] == ("fail", "broken")
    assert "did not sign what it says now" in check(keys["ci"])[2]
    file.write_text(json.dumps(json.loads(signed) | {"signature": None}))
    assert check(keys["ci"])[:2] == ("unclear", "not signed")


# Links ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "javascript:alert('{trace_id}')",
        "data:text/html,{trace_id}",
        "//evil/{trace_id}",
        "https:///{trace_id}",
        "https://{trace_id}.evil/",
        "https://viewer/",
        "https://viewer/ {trace_id}",
        "java\nscript:{trace_id}",
        "https://[/{trace_id}",
    ],
)
def test_trace_links_lead_to_a_web_page(template):
    """Another scheme, no host, the id in the host or nowhere: refused, and named."""
    with pytest.raises(ConfigError, match="--trace-link"):
        check_trace_link(template)


def test_a_trace_id_stays_one_part_of_the_link():
    """Whatever it holds is escaped; without an id or a template there is no link."""
    assert link_trace("https://v/{trace_id}?x", "a/../?#é") == "https://v/a%2F..%2F%3F%23%C3%A9?x"
    assert link_trace("https://v/{trace_id}", None) is None
    assert link_trace(None, "ab") is None
    for text in HOSTILE:
        assert not set(link_trace("https://v/{trace_id}", text)) & set("<>\"' \x00\x1b\u202e")


# Evidence and provenance ------------------------------------------------------------------------


def test_evidence_beside_the_verdict(release):
    """Rivals on one symmetric axis, OPE's estimators with what they lack, the judge's pin."""
    view = view_evidence(read_verdict(release["verdict"]), release["extras"].judges)
    (rival,) = view.rivals
    assert rival.name == "filtered_bc"
    assert view.reach == pytest.approx(115 * max(abs(rival.low), abs(rival.high)))
    assert view.ope.estimates == (("dr", 0.61, "0.4 to 0.8", ""), ("wis", None, "", "too few runs"))
    (judge,) = view.judges
    assert (judge.verdict, judge.anchors, judge.pin["parser"]) == (
        "INCONCLUSIVE",
        "drifted",
        "json-1",
    )
    with pytest.raises(DataError, match="no summary here; run `starpo-train judge`"):
        view_evidence(None, [release["dataset"]])


def test_provenance_follows_a_checkpoint_to_its_data(tmp_path, release):
    """Base model, dataset and configuration from COMMIT; another dataset is warned about."""
    source = trace_checkpoint(release["runs"][0], "digest-of-train")
    facts = dict(source.facts)
    assert facts["base model"] == "models/base"
    assert facts["trained on"] == "train, digest digest-of-train"
    assert facts["algorithm"] == "starpo, seed 7"
    assert source.warning is None
    assert "another dataset" in trace_checkpoint(release["runs"][0], "else").warning
    assert "none committed" in trace_checkpoint(tmp_path, None).facts[0][1]
    write_checkpoint(tmp_path, "x")
    (tmp_path / "checkpoints/step_000003/COMMIT").write_text("[]")
    assert "none committed" in trace_checkpoint(tmp_path, None).facts[0][1]


def test_provenance_names_everything(release):
    """The gate, both evaluations, the training data, the checkpoint, the judge; digests in full."""
    verdict = read_verdict(release["verdict"])
    judges = view_evidence(None, release["extras"].judges).judges
    sources = collect_sources(
        verdict=verdict,
        policies=release["policies"],
        dataset=release["dataset"],
        runs=release["runs"],
        judges=judges,
    )
    assert [source.title for source in sources] == [
        "Gate",
        "recorded policy (baseline): evaluation",
        "StarPO (candidate): evaluation",
        "Training dataset",
        "Checkpoint of run-starpo",
        "Judge: refund_policy",
    ]
    assert dict(sources[0].facts)["candidate"] == "digest digest-of-new"
    assert dict(sources[5].facts)["prompt hash"] == "ab"
