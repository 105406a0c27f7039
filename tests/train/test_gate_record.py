"""What surrounds a verdict: preflight, off-policy evidence, signature, record of releases."""

import hmac
import json
from hashlib import sha256

import polars as pl
import pytest
from gate_data import make_rows, write_dataset

from starpo_train.cli import main
from starpo_train.errors import ConfigError, DataError
from starpo_train.gate import GateConfig, GateExtras, decide_release, run_gate
from starpo_train.gate.evidence import read_ope
from starpo_train.gate.files import read_played_weights
from starpo_train.gate.releases import list_releases, measure_rollbacks, roll_back
from starpo_train.gate.verify import verify_verdict
from starpo_train.modelfolder import hash_weights
from starpo_train.stats import p_value_no_gain

SUCCESS_ONLY = GateConfig(guardrails=())
KEY = "ab" * 32


def write_ope(path, *, outcome="supported", weights="w" * 64, doubts=()):
    """An ope.json as `starpo-train ope` writes it."""
    record = {
        "checkpoint": {"path": "model", "weights_sha256": weights},
        "dataset": {"path": "data", "digest": "d", "split": "test"},
        "behaviour": {"name": "behaviour", "value": 0.5, "interval": [0.4, 0.6]},
        "estimates": [{"name": "WIS", "value": 0.7, "interval": [0.6, 0.8], "reason": None}],
        "verdict": {
            "outcome": outcome,
            "by": "WIS",
            "doubts": [{"name": "doubt", "detail": text} for text in doubts],
        },
    }
    path.write_text(json.dumps(record))
    return path


@pytest.fixture
def release(tmp_path):
    """Datasets of a clear winner, a key file, and a function that runs the gate on them."""
    paths = {
        "baseline": write_dataset(tmp_path / "old", make_rows([[0]] * 40, policy="old")),
        "candidate": write_dataset(tmp_path / "new", make_rows([[1]] * 40, policy="new")),
    }
    (tmp_path / "keys").write_text(f"ci {KEY}\n")

    def run(**extras):
        extras = {"key_file": tmp_path / "keys"} | extras
        return run_gate(
            **paths,
            evidence={},
            config=SUCCESS_ONLY,
            output=tmp_path / "out",
            extras=GateExtras(**extras),
        )

    return run


def test_exact_mcnemar_by_hand():
    """Four gains, one loss: (C(5,4) + C(5,5)) / 2^5; no difference at all: 1."""
    assert p_value_no_gain([1, 1, 1, 1, -1, 0, 0]) == pytest.approx(6 / 32)
    assert p_value_no_gain([0, 0, 0]) == 1.0


def test_better_with_one_attempt_is_claimed_by_the_exact_test():
    """Four gains without a loss are p = 1/16 and no claim; five are 1/32 and one."""
    for gains, improved in ((4, False), (5, True)):
        candidate = make_rows([[1]] * 100)
        baseline = make_rows([[0]] * gains + [[1]] * (100 - gains))
        decision = decide_release(candidate, baseline, config=SUCCESS_ONLY)
        assert decision.superiority_p_value == pytest.approx(0.5**gains)
        assert decision.improved is improved


def test_preflight_that_holds_changes_nothing():
    """The oracle solves all, the null agent none: the verdict stands."""
    candidate, baseline = make_rows([[1]] * 40), make_rows([[0]] * 40)
    runs = {"oracle": make_rows([[1]] * 41), "null": make_rows([[0, 0]] * 40)}
    decision = decide_release(candidate, baseline, config=SUCCESS_ONLY, preflight=runs)
    assert decision.verdict == "PROMOTE"
    assert [check["wrong"] for check in decision.preflight] == [(), ()]


@pytest.mark.parametrize(
    ("agent", "rewards", "words"),
    [
        ("oracle", [[1]] * 38 + [[1, 0], [0]], "does not solve 2 of 40: task-0038, task-0039"),
        ("null", [[0]] * 39 + [[1]], "solves 1 of 40: task-0039"),
        ("null", [[0]] * 39 + [[None]], "at 1 of 40 tasks: task-0039; play them"),
        ("oracle", [[1]] * 38, "at 2 of 40 tasks: task-0038, task-0039; play them"),
    ],
)
def test_preflight_names_the_tasks_at_fault(agent, rewards, words):
    """An unsolvable, a hackable and an unplayed task leave even a clear win inconclusive."""
    decision = decide_release(
        make_rows([[1]] * 40),
        make_rows([[0]] * 40),
        config=SUCCESS_ONLY,
        preflight={agent: make_rows(rewards)},
    )
    assert decision.verdict == "INCONCLUSIVE"
    assert words in decision.sentence


def test_off_policy_evidence_stands_beside_the_verdict(tmp_path):
    """Supported or contradicted, verdict and reasons are the same; the statement is in it."""
    rows = make_rows([[1, 0]] * 40), make_rows([[1, 0]] * 40)
    alone = decide_release(*rows, config=SUCCESS_ONLY)
    for outcome, words in (("supported", "supports"), ("contradicted", "contradicts")):
        ope = read_ope(write_ope(tmp_path / "ope.json", outcome=outcome))
        beside = decide_release(*rows, config=SUCCESS_ONLY, ope=ope)
        assert (beside.verdict, beside.reasons) == (alone.verdict, alone.reasons)
        assert words in beside.ope["statement"]
        assert "WIS 0.7, interval 0.6 to 0.8, recorded 0.5" in beside.ope["statement"]
    (tmp_path / "ope.json").write_text('{"verdict": {"outcome": "fine"}}')
    with pytest.raises(DataError, match=r"not an ope\.json"):
        read_ope(tmp_path / "ope.json")


def test_off_policy_evidence_about_other_weights_says_nothing(tmp_path, hand, release):
    """With the candidate's checkpoint given, an ope.json of another model is inconclusive."""
    model = hand.model(tmp_path / "model")
    decision = release(
        ope=write_ope(tmp_path / "ope.json", doubts=()), checkpoints={"candidate": model}
    )
    assert decision.ope["outcome"] == "inconclusive"
    assert "other weights than the candidate's" in decision.ope["statement"]


def test_a_checkpoint_that_did_not_play_is_refused(tmp_path, hand, release):
    """By the summary that `evaluate` writes beside the dataset; without one, that is told."""
    model, other = hand.model(tmp_path / "model"), hand.model(tmp_path / "other", seed=1)
    told = release(checkpoints={"candidate": model}).notes
    assert any("says which weights played" in note for note in told)
    summary = {"weights_sha256": hash_weights(str(model))}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert not any("weights" in note for note in release(checkpoints={"candidate": model}).notes)
    with pytest.raises(ConfigError, match=r"candidate=.*other: its weights .* are not those that"):
        release(checkpoints={"candidate": other})
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "new"
    link.symlink_to(tmp_path / "new")
    assert read_played_weights(link) == summary["weights_sha256"]


def test_runs_that_were_played_again_are_not_missing(tmp_path, hand):
    """An attempt that was interrupted and played again counts once, as in the evaluation's summary."""
    rows = make_rows([[1]] * 40, policy="new").with_columns(attempt=pl.lit(0, pl.Int64))
    torn = rows.with_columns(
        reward=pl.lit(None, pl.Float64), num_steps=pl.lit(1, pl.Int64), input_tokens=None
    )
    write_dataset(tmp_path / "resumed", pl.concat([rows, torn], how="vertical_relaxed"))
    old = make_rows([[1]] * 40, policy="old").with_columns(attempt=pl.lit(0, pl.Int64))
    write_dataset(tmp_path / "straight", old)
    decision = run_gate(
        baseline=tmp_path / "straight",
        candidate=tmp_path / "resumed",
        evidence={},
        config=GateConfig(margin_success=0.1),
        output=tmp_path / "out",
    )
    assert decision.verdict == "PROMOTE"
    assert decision.accounting["rewards_missing_candidate"] == 0
    changes = {c.metric: c.change for c in decision.comparisons}
    assert (changes["tokens_per_trace"], changes["steps_p95"]) == (0.0, 0.0)


def test_signature_is_the_hmac_of_canonical_json(tmp_path, release):
    """By hand: sorted keys, no spaces, everything but the signature."""
    release()
    record = json.loads((tmp_path / "out" / "verdict.json").read_text())
    signature = record.pop("signature")
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    expected = hmac.new(bytes.fromhex(KEY), b"starpo verdict v1\n" + text.encode(), sha256)
    assert signature == f"v1:ci:{expected.hexdigest()}"
    assert len(record["code"]["sha256"]) == 64
    assert record["inputs"]["candidate"]["digest"] == "digest-of-new"


def test_verify_accepts_what_is_genuine_and_exits_with_its_verdict(tmp_path, release, capsys):
    """The signature of the environment's key; the exit code is the verdict's own."""
    release()
    arguments = ["gate", "--verify", str(tmp_path / "out"), "--key", str(tmp_path / "keys")]
    assert main(arguments) == 0
    assert "unchanged: baseline dataset, candidate dataset" in capsys.readouterr().out
    blocked = run_gate(
        baseline=tmp_path / "new",
        candidate=tmp_path / "old",
        evidence={},
        config=SUCCESS_ONLY,
        output=tmp_path / "blocked.json",
        extras=GateExtras(key_file=tmp_path / "keys"),
    )
    assert blocked.verdict == "BLOCK"
    found = verify_verdict(tmp_path / "blocked.json", key_file=tmp_path / "keys")
    assert (found.exit_code, found.key_id) == (10, "ci")


@pytest.mark.parametrize(
    "forge",
    [
        lambda record: record | {"verdict": "BLOCK"},
        lambda record: record | {"tasks_needed": 7},
        lambda record: record | {"extra": 1},
        lambda record: record | {"config": record["config"] | {"alpha": 0.2}},
        lambda record: record | {"signature": record["signature"].replace("v1:ci", "v1:other")},
        lambda record: record | {"signature": "v1:ci:" + "0" * 64},
        lambda record: record | {"signature": "none"},
        lambda record: {key: value for key, value in record.items() if key != "signature"},
    ],
)
def test_verify_refuses_what_was_edited(tmp_path, release, forge):
    """A changed verdict, number, setting or signature, and none at all."""
    release()
    file = tmp_path / "out" / "verdict.json"
    file.write_text(json.dumps(forge(json.loads(file.read_text()))))
    with pytest.raises(DataError, match="do not act on it"):
        verify_verdict(file, key_file=tmp_path / "keys")


def test_verify_refuses_when_what_it_saw_has_changed(tmp_path, hand, release):
    """Another dataset at its place, another checkpoint, one that the verdict never saw."""
    model, other = hand.model(tmp_path / "model"), hand.model(tmp_path / "other", seed=1)
    keys = tmp_path / "keys"
    release(checkpoints={"candidate": model})
    found = verify_verdict(tmp_path / "out", key_file=keys, checkpoints={"candidate": model})
    assert "candidate checkpoint" in found.same
    with pytest.raises(DataError, match=r"the candidate checkpoint .* is not what it saw"):
        verify_verdict(tmp_path / "out", key_file=keys, checkpoints={"candidate": other})
    with pytest.raises(DataError, match="made without the baseline checkpoint"):
        verify_verdict(tmp_path / "out", key_file=keys, checkpoints={"baseline": other})
    manifest = tmp_path / "new" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("digest-of-new", "digest-of-newer"))
    with pytest.raises(DataError, match=r"the candidate dataset .* is not what it saw"):
        verify_verdict(tmp_path / "out", key_file=keys)


def test_keys_come_from_file_or_environment(tmp_path, release, monkeypatch):
    """No key: unsigned, and nothing to verify with; the variable signs; a bad key is an error."""
    monkeypatch.delenv("STARPO_VERDICT_KEY", raising=False)
    monkeypatch.delenv("STARPO_VERDICT_KEY_FILE", raising=False)
    release(key_file=None)
    assert "signature" not in json.loads((tmp_path / "out" / "verdict.json").read_text())
    with pytest.raises(ConfigError, match="no key to verify with"):
        verify_verdict(tmp_path / "out")
    monkeypatch.setenv("STARPO_VERDICT_KEY", f"env:{KEY}")
    release(key_file=None)
    assert verify_verdict(tmp_path / "out").key_id == "env"
    (tmp_path / "bad").write_text("nonsense\n")
    with pytest.raises(ConfigError, match=r"bad, line 1"):
        release(key_file=tmp_path / "bad")


def test_releases_are_recorded_and_rolled_back(tmp_path, release, capsys):
    """One promoted release, verdict given twice, taken back once: 1 of 1."""
    file = tmp_path / "releases.jsonl"
    release(releases=file)
    release(releases=file)
    assert [event["event"] for event in list_releases(file)] == ["promoted", "promoted"]
    assert measure_rollbacks(list_releases(file)).num_promoted == 1
    verdict = str(tmp_path / "out" / "verdict.json")
    arguments = ["gate", "--rolled-back", verdict, "--releases", str(file), "--reason"]
    assert main([*arguments, ""]) == 2
    assert main([*arguments, "looped on refunds"]) == 0
    assert "1 of 1 promoted releases rolled back: 100.0%" in capsys.readouterr().out
    assert list_releases(file)[-1]["reason"] == "looped on refunds"
    with pytest.raises(DataError, match="rolled back already"):
        roll_back(file, tmp_path / "out" / "verdict.json", reason="again")


def test_rate_counts_releases_not_verdicts():
    """Four promoted, one of them twice and taken back; a blocked one does not count."""
    events = [{"event": "promoted", "release": name} for name in "abcda"]
    events += [{"event": "blocked", "release": "e"}, {"event": "rolled_back", "release": "a"}]
    rate = measure_rollbacks(events)
    assert (rate.num_promoted, rate.num_rolled_back) == (4, 1)
    assert rate.rate.value == 0.25
    assert measure_rollbacks([]).describe() == "No release was promoted yet."


def test_a_rollback_of_what_was_not_promoted_is_refused(tmp_path, release):
    """A verdict that the record does not hold, and a torn record, which stays as it is."""
    file = tmp_path / "releases.jsonl"
    release()
    with pytest.raises(DataError, match=r"does not hold .* as promoted"):
        roll_back(file, tmp_path / "out" / "verdict.json", reason="x")
    file.write_text('{"event": "promo')
    with pytest.raises(DataError, match=r"releases\.jsonl, line 1: not a release event"):
        release(releases=file)
    assert file.read_text() == '{"event": "promo'
