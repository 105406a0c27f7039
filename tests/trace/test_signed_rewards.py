"""Verifiers sign, the builder checks: what an agent writes itself does not count."""

import enum
import json
import os
import subprocess
import sys

import msgspec
import openai
import pytest

import starpo_trace
from starpo_trace import semconv
from starpo_trace.cli import main
from starpo_trace.convert.dataset import (
    build_dataset,
    convert_rows,
    scan_table,
)
from starpo_trace.convert.otlp import decode_protobuf
from starpo_trace.convert.rewards import Trust
from starpo_trace.errors import ConfigError
from starpo_trace.signing import Keyring, SignedReward, read_keyring, sign_reward, write_new_key
from starpo_trace.store.segments import Record, list_segments, read_segment
from starpo_trace.testing import Reply, ScriptedServer, record_spans

KEY = "k1:" + "ab" * 32
KEYS = Keyring(keys={"k1": bytes.fromhex("ab" * 32)})
TRUST = Trust(keyring=KEYS, require_signed=True)


def signed(target, value, *, keys=KEYS, reward_id="r1", task_id=None, signed_ns=1, **changes):
    """Attributes of a reward that a verifier signed for the root span `target`."""
    reward = SignedReward(
        trajectory_id=target.attributes[semconv.TRAJECTORY_ID],
        task_id=task_id,
        reward_id=reward_id,
        name="reward",
        value=value,
        scope="trajectory",
        step=None,
        kind="outcome",
        source="environment",
        signed_ns=signed_ns,
        verifier_digest="sha256:ab",
    )
    return {
        semconv.EVALUATION_VALUE: value,
        semconv.TASK_ID: task_id,
        semconv.REWARD_ID: reward_id,
        semconv.REWARD_SIGNATURE: sign_reward(reward, keys),
        semconv.REWARD_SIGNED_NS: signed_ns,
        semconv.REWARD_VERIFIER_DIGEST: "sha256:ab",
        **changes,
    }


def make_run(spans, trajectory="t1", **attributes):
    """Root and call of a run."""
    root = spans.root(trajectory, num_steps=1, **attributes)
    user, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}
    return root, spans.call(root, 0, [user], answer)


def judge(rows, trust=TRUST):
    """Value of each reward, its signature, why it does not count; the trajectory's reward."""
    tables = convert_rows(rows, trust=trust)
    rewards = tables["rewards"].sort("time_ns")
    columns = ("value", "signature", "untrusted_because", "superseded")
    return rewards.select(columns).rows(), tables["trajectories"]["reward"].to_list()


def test_a_signed_reward_counts_and_an_unsigned_one_does_not(spans):
    """With keys, what the agent wrote itself is there, untrusted, with the reason."""
    root, call = make_run(spans, **{semconv.TASK_ID: "a"})
    rows = [
        root,
        call,
        spans.reward(root, 9.0, **{semconv.REWARD_ID: "own"}),
        spans.reward(root, 0.25, **signed(root, 0.25, task_id="a")),
    ]
    assert judge(rows) == (
        [(9.0, "missing", "not signed", False), (0.25, "valid", None, False)],
        [0.25],
    )
    [_, valid] = convert_rows(rows, trust=TRUST)["rewards"].sort("time_ns").to_dicts()
    assert (valid["key_id"], valid["verifier_digest"]) == ("k1", "sha256:ab")


def test_a_reward_signed_for_another_run_or_task_does_not_count(spans):
    """Replayed onto another trajectory, or onto the same one under another task."""
    first, first_call = make_run(spans, "t1", **{semconv.TASK_ID: "a"})
    second, second_call = make_run(spans, "t2", **{semconv.TASK_ID: "b"})
    good = signed(first, 1.0, task_id="a")
    unnamed = signed(second, 1.0, reward_id="r2")
    other = signed(second, 1.0, reward_id="r3", task_id="a")
    rows = [
        *[first, first_call, second, second_call],
        spans.reward(second, 1.0, **good),
        spans.reward(second, 1.0, **{**good, semconv.TASK_ID: "b"}),
        spans.reward(second, 1.0, **unnamed),
        spans.reward(second, 1.0, **other),
    ]
    found, rewards = judge(rows)
    assert [(signature, reason) for _, signature, reason, _ in found] == [
        ("invalid", "key k1 did not sign this reward"),
        ("invalid", "key k1 did not sign this reward"),
        ("invalid", "signed for no task, but the trajectory is of task b"),
        ("invalid", "signed for task a, but the trajectory is of task b"),
    ]
    assert rewards == [None, None]
    reasons = convert_rows(rows, trust=TRUST)["trajectories"].sort("trajectory_id")["reasons"]
    assert ["reward_signature_invalid" in each for each in reasons.to_list()] == [False, True]


@pytest.mark.parametrize(
    "change",
    [
        {semconv.EVALUATION_VALUE: 2.0},
        {semconv.REWARD_SCOPE: "turn"},
        {semconv.REWARD_STEP: 0},
        {semconv.REWARD_SOURCE: "user"},
        {semconv.REWARD_KIND: "process"},
        {semconv.REWARD_SIGNED_NS: 2},
        {semconv.REWARD_SIGNED_NS: None},
        {semconv.REWARD_VERIFIER_DIGEST: None},
        {semconv.EVALUATION_NAME: "score"},
        {semconv.REWARD_SIGNATURE: "v1:k1:" + "0" * 64},
        {semconv.REWARD_SIGNATURE: "signed, honestly"},
        {semconv.REWARD_SIGNATURE: "v1:k9:" + "0" * 64},
    ],
)
def test_a_changed_reward_does_not_count(spans, change):
    """Any change of what was signed makes the signature invalid."""
    root, call = make_run(spans)
    rows = [root, call, spans.reward(root, 1.0, **{**signed(root, 1.0), **change})]
    [[_, signature, reason, _]], rewards = judge(rows)
    assert signature == "invalid"
    assert reason
    assert rewards == [None]


def test_an_earlier_signed_reward_sent_again_does_not_win(spans):
    """The agent cannot bring back a value that the verifier has corrected."""
    root, call = make_run(spans)
    early, late = signed(root, 1.0, signed_ns=5), signed(root, 0.0, signed_ns=9)
    rows = [root, call]
    rows += [spans.reward(root, each[semconv.EVALUATION_VALUE], **each) for each in (late, early)]
    assert judge(rows) == (
        [(0.0, "valid", None, False), (1.0, "valid", None, True)],
        [0.0],
    )


def test_of_signed_rewards_the_one_signed_last_is_the_outcome(spans):
    """With ids of their own, whatever time the spans have that carry them, and sent twice."""
    root, call = make_run(spans)
    early = signed(root, 1.0, signed_ns=5, reward_id="r1")
    late = signed(root, 0.0, signed_ns=9, reward_id="r2")
    rows = [root, call, spans.reward(root, 0.0, **late)]
    rows += [spans.reward(root, 1.0, **early), spans.reward(root, 1.0, **early)]
    assert judge(rows) == (
        [(0.0, "valid", None, False), (1.0, "valid", None, True), (1.0, "valid", None, False)],
        [0.0],
    )


def test_an_unsigned_reward_of_another_id_is_not_the_outcome_beside_a_signed_one(spans):
    """Where unsigned rewards count too, neither a later time nor a name puts them first."""
    root, call = make_run(spans)
    score = signed(root, 0.25, reward_id="r1")
    own = {semconv.REWARD_ID: "own", semconv.EVALUATION_NAME: "reward"}
    rows = [root, call, spans.reward(root, 0.25, **score), spans.reward(root, 1.0, **own)]
    assert judge(rows, Trust(keyring=KEYS, require_signed=False))[1] == [0.25]
    assert judge(rows, Trust())[1] == [1.0]


def test_a_span_with_a_signed_reward_s_ids_does_not_delete_it(spans):
    """Whatever it says and however late it ends; the trajectory is fit for no training."""
    root, call = make_run(spans)
    true = spans.reward(root, 0.25, **signed(root, 0.25))
    late = {"span_id": true.span_id, "end_ns": 2**62}
    forgeries = [
        spans.reward(root, 1.0),
        spans.reward(root, 1.0, **{**signed(root, 0.25), "starpo.more": "x"}),
        spans.reward(root, 1.0, **{semconv.REWARD_ID: "r7", semconv.TRAJECTORY_ID: "t9"}),
        spans.row({semconv.RECORD: "state", semconv.STATE_VALUE: "{}"}, parent=root),
        spans.row({semconv.RECORD: "reward"}),
        spans.row({}),
    ]
    for forged in (msgspec.structs.replace(each, **late) for each in forgeries):
        for cyclic in (forged, msgspec.structs.replace(forged, parent_id=true.span_id)):
            tables = convert_rows([root, cyclic, call, true], trust=TRUST)
            [trajectory] = tables["trajectories"].to_dicts()
            assert trajectory["reward"] == 0.25
            assert "conflicting_copies" in trajectory["reasons"]
            assert trajectory["usable_for"] == "none"


def sign_step(spans, target, *, step, linked_to, keys=KEYS):
    """A signed step reward of `target`'s trajectory, linked to a span."""
    reward = SignedReward(
        trajectory_id=target.attributes[semconv.TRAJECTORY_ID],
        task_id=None,
        reward_id="s",
        name="reward",
        value=1.0,
        scope="turn",
        step=step,
        kind="process",
        source="environment",
        signed_ns=1,
        verifier_digest=None,
    )
    return spans.reward(
        target,
        1.0,
        links=((linked_to.trace_id, linked_to.span_id),),
        **{
            semconv.REWARD_ID: "s",
            semconv.REWARD_SCOPE: "turn",
            semconv.REWARD_KIND: "process",
            semconv.REWARD_STEP: step,
            semconv.REWARD_SIGNATURE: sign_reward(reward, keys),
            semconv.REWARD_SIGNED_NS: 1,
        },
    )


def test_the_link_moves_no_signed_reward_to_another_step(spans):
    """The step under signature decides; a link that says something else makes it invalid."""
    root = spans.root(num_steps=2)
    user, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}
    first = spans.call(root, 0, [user], answer)
    second = spans.call(root, 1, [user, answer, user], answer)
    for step, linked_to, expected in (
        (0, first, ("valid", None, [1.0, None])),
        (0, root, ("valid", None, [1.0, None])),
        (0, second, ("invalid", "signed for step 0, but linked to step 1", [None, None])),
        (None, second, ("invalid", "signed for no step, but linked to step 1", [None, None])),
    ):
        reward = sign_step(spans, root, step=step, linked_to=linked_to)
        tables = convert_rows([root, first, second, reward], trust=TRUST)
        [found] = tables["rewards"].select("signature", "untrusted_because").rows()
        assert (*found, tables["turns"].sort("turn")["reward"].to_list()) == expected
        tables = convert_rows([root, first, second, reward])  # without keys
        assert tables["rewards"]["step"].to_list() == [step]


def test_an_unsigned_reward_never_replaces_a_signed_one(spans):
    """Not even later, with the same id, in a build without keys."""
    root, call = make_run(spans)
    rows = [
        root,
        call,
        spans.reward(root, 0.25, **signed(root, 0.25)),
        spans.reward(root, 1.0, **{semconv.REWARD_ID: "r1"}),
    ]
    assert judge(rows, Trust()) == (
        [(0.25, "unchecked", None, False), (1.0, "missing", None, True)],
        [0.25],
    )
    lenient = Trust(keyring=KEYS, require_signed=False)
    assert judge(rows, lenient) == (
        [(0.25, "valid", None, False), (1.0, "missing", None, True)],
        [0.25],
    )


def test_without_required_signatures_unsigned_rewards_count_and_invalid_ones_do_not(spans):
    """Keys may be brought in while some verifiers have none yet."""
    root, call = make_run(spans)
    forged = {**signed(root, 1.0, reward_id="r2"), semconv.EVALUATION_VALUE: 7.0}
    rows = [
        *[root, call],
        spans.reward(root, 7.0, **forged),
        spans.reward(root, 0.5, **{semconv.REWARD_ID: "r3"}),
    ]
    found, rewards = judge(rows, Trust(keyring=KEYS, require_signed=False))
    assert [each[1] for each in found] == ["invalid", "missing"]
    assert rewards == [0.5]


def test_rotation(spans):
    """The old key verifies while it is in the file."""
    root, call = make_run(spans)
    rows = [root, call, spans.reward(root, 1.0, **signed(root, 1.0))]
    new = Keyring(keys={"k2": bytes(32), **KEYS.keys})
    assert judge(rows, Trust(keyring=new, require_signed=True))[1] == [1.0]
    new = Keyring(keys={"k2": bytes(32)})
    found, rewards = judge(rows, Trust(keyring=new, require_signed=True))
    assert found == [(1.0, "invalid", "key k1 is not among the keys", False)]
    assert rewards == [None]


def test_the_steps_that_were_signed_are_those_that_were_recorded(spans):
    """Where a trajectory's steps are numbered anew, signatures still hold."""
    root, call = make_run(spans)
    remote = dict.fromkeys([semconv.PART], "remote-1") | {semconv.PART_BASE: 0}
    user = {"role": "user", "content": "far"}
    far = spans.call(root, 0, [user], {"role": "assistant", "content": "y"}, attributes=remote)
    reward = SignedReward(
        trajectory_id="t1",
        task_id=None,
        reward_id="r9",
        name="reward",
        value=0.5,
        scope="turn",
        step=0,
        kind="process",
        source="environment",
        signed_ns=1,
        verifier_digest=None,
    )
    attributes = {
        **remote,
        semconv.REWARD_ID: "r9",
        semconv.REWARD_SCOPE: "turn",
        semconv.REWARD_KIND: "process",
        semconv.REWARD_STEP: 0,
        semconv.REWARD_SIGNATURE: sign_reward(reward, KEYS),
        semconv.REWARD_SIGNED_NS: 1,
    }
    rows = [root, call, far, spans.reward(far, 0.5, **attributes)]
    [found] = convert_rows(rows, trust=TRUST)["rewards"].to_dicts()
    assert (found["signature"], found["step"], found["turn"]) == ("valid", 1, 1)


def test_a_task_that_is_a_member_of_an_enumeration_is_signed_as_recorded(tmp_path, read_store):
    """`class Task(str, Enum)` prints as its name, and is its value."""

    class Task(str, enum.Enum):  # noqa: UP042 (as older programs have them)
        A = "ta"

    starpo_trace.instrument(store=tmp_path)
    try:
        with starpo_trace.trajectory(task_id=Task.A):
            starpo_trace.reward(1.0, key=KEY)
    finally:
        starpo_trace.uninstrument()
    rows = read_store(tmp_path)
    [found] = convert_rows(rows, trust=TRUST)["rewards"].to_dicts()
    assert (found["signature"], found["untrusted_because"]) == ("valid", None)


def test_reward_signs_with_the_key_it_is_given_or_finds(monkeypatch, tmp_path):
    """`key=`, the environment, a file; without any it is unsigned, unless it must be."""
    with record_spans() as store:
        with starpo_trace.trajectory(task_id="t 1") as run:
            starpo_trace.reward(0.5, key=KEY, verifier_digest="sha256:ab")
        with pytest.raises(ConfigError, match=r"reward\(sign=True\) without a key"):
            starpo_trace.reward(1, trajectory_id=run.id, sign=True)
        starpo_trace.reward(1, trajectory_id=run.id)
        monkeypatch.setenv("STARPO_REWARD_KEY", KEY)
        starpo_trace.reward({"a": 1, "b": 2}, trajectory_id=run.id, task_id="t 1")
        starpo_trace.reward(1, trajectory_id=run.id, sign=False)
    inside, unsigned, *vector, never = store.select("reward")
    for each in (inside, *vector):
        reward = SignedReward(
            trajectory_id=run.id,
            task_id="t 1",
            reward_id=each[semconv.REWARD_ID],
            name=each[semconv.EVALUATION_NAME],
            value=each[semconv.EVALUATION_VALUE],
            scope="trajectory",
            step=None,
            kind="outcome",
            source="environment",
            signed_ns=each[semconv.REWARD_SIGNED_NS],
            verifier_digest=each.get(semconv.REWARD_VERIFIER_DIGEST),
        )
        assert each[semconv.REWARD_SIGNATURE] == sign_reward(reward, KEYS)
        assert each[semconv.TASK_ID] == "t 1"
    assert inside[semconv.REWARD_VERIFIER_DIGEST] == "sha256:ab"
    assert [semconv.REWARD_SIGNATURE in each for each in (unsigned, never)] == [False, False]


def test_a_broken_key_costs_the_signature_not_the_reward(monkeypatch, tmp_path, caplog):
    """The log says which line; a file that others can read is warned of."""
    monkeypatch.setenv("STARPO_DEBUG", "0")
    monkeypatch.setattr("starpo_trace.guard._reported", set())
    path = tmp_path / "keys"
    path.write_text("nonsense\n")
    monkeypatch.setenv("STARPO_REWARD_KEY_FILE", str(path))
    with record_spans() as store, starpo_trace.trajectory():
        starpo_trace.reward(1)
        path.unlink()
        write_new_key(path, "k1")
        path.chmod(0o644)
        starpo_trace.reward(1)
    assert [semconv.REWARD_SIGNATURE in each for each in store.select("reward")] == [False, True]
    first, second = caplog.records
    assert "line 1: no `id hex`" in str(first.exc_info[1])
    assert "chmod 600" in second.getMessage()


@pytest.mark.slow
def test_the_whole_way_in_the_shell(tmp_path, capfd):
    """An agent that writes its own reward, a verifier with a key, and the builder."""
    keys, store, dataset = tmp_path / "reward.keys", tmp_path / "traces", tmp_path / "dataset"
    assert main(["keys", "new", "verifier-1", "--file", str(keys)]) == 0
    with (
        ScriptedServer([Reply(content="x")]) as server,
        openai.OpenAI(base_url=server.base_url, api_key="none") as client,
    ):
        starpo_trace.instrument(store=store)
        with starpo_trace.trajectory(task_id="t1") as run:
            client.chat.completions.create(model="m", messages=[])
            starpo_trace.reward(1.0)
        starpo_trace.uninstrument()
    command = [sys.executable, "-m", "starpo_trace.cli", "reward", "--trajectory", run.id]
    command += ["--task", "t1", "--value", "0.25", "--store", str(store), "--source", "rule"]
    environment = {**os.environ, "STARPO_REWARD_KEY_FILE": str(keys)}
    for arguments in (["--verifier-digest", "sha256:ab"], ["--id", "late", "--value", "0.125"]):
        subprocess.run([*command, *arguments], env=environment, check=True)
    assert main(["export", str(store), "-o", str(dataset), "--reward-keys", str(keys)]) == 0
    assert "signed with verifier-1" in capfd.readouterr().out
    rewards = scan_table(dataset, "rewards").sort("time_ns").collect()
    assert rewards.select("value", "signature", "key_id", "trusted").rows() == [
        (1.0, "missing", None, False),
        (0.25, "valid", "verifier-1", True),
        (0.125, "valid", "verifier-1", True),
    ]
    assert scan_table(dataset, "trajectories").collect()["reward"].to_list() == [0.125]
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert manifest["signatures"] == {"valid": 2, "invalid": 0, "missing": 1, "unchecked": 0}
    assert manifest["parameters"]["reward_keys"] == ["verifier-1"]
    assert manifest["parameters"]["require_signed"] is True
    [key] = read_keyring(keys).keys.values()
    written = [file for file in tmp_path.rglob("*") if file.is_file() and file != keys]
    assert len(written) > 5
    assert not any(key in data or key.hex().encode() in data for data in map(_read, written))


def _read(file):
    return file.read_bytes()


def test_signatures_survive_otlp(tmp_path):
    """What is read back from the store is what was signed, to the last bit of the value."""
    starpo_trace.instrument(store=tmp_path)
    with starpo_trace.trajectory():
        starpo_trace.reward(0.1 + 0.2, key=KEY)
    starpo_trace.uninstrument()
    rows = [
        row
        for path in list_segments(tmp_path)
        for record in read_segment(path)
        if isinstance(record, Record)
        for row in decode_protobuf(record.payload, str(path))
    ]
    tables = convert_rows(rows, trust=TRUST)
    assert tables["rewards"]["signature"].to_list() == ["valid"]
    changed = [
        msgspec.structs.replace(row, attributes={**row.attributes, semconv.EVALUATION_VALUE: 0.3})
        if row.attributes[semconv.RECORD] == "reward"
        else row
        for row in rows
    ]
    tables = convert_rows(changed, trust=TRUST)
    assert tables["rewards"]["signature"].to_list() == ["invalid"]


def test_builds_that_cannot_check_are_refused(tmp_path):
    """Required signatures without keys; a key file that is none."""
    with pytest.raises(ConfigError, match="no keys; give --reward-keys"):
        build_dataset([tmp_path], tmp_path / "d", require_signed=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        build_dataset([tmp_path], tmp_path / "d", reward_keys=tmp_path / "missing")
