"""Reading datasets, and what the data allows."""

import json
from hashlib import blake2b

import polars as pl
import pytest

from starpo_train.dataset import read_manifest, read_message_graphs, read_trajectories, scan_table
from starpo_train.errors import DataError, ProvenanceError
from starpo_train.provenance import Terms, choose_algorithm, describe_data


def test_prompts_are_put_together_from_their_base_turn(hand, tmp_path):
    """Turn 1 stores only what its prompt adds to turn 0's prompt + answer; turn 2 cuts earlier."""
    turns = [
        hand.turn([1, 2], [3], [-0.5]),
        hand.turn([4], [5, 6], [-0.1, -0.2], prompt_base_turn=0, prompt_base_length=3),
        hand.turn([9], [7], [-0.3], prompt_base_turn=1, prompt_base_length=2),
    ]
    path = hand.dataset(tmp_path, [hand.trajectory("t", turns, reward=1.0)])
    (trajectory,) = read_trajectories(path)
    prompts = [turn.prompt_ids_T.tolist() for turn in trajectory.turns]
    assert prompts == [[1, 2], [1, 2, 3, 4], [1, 2, 9]]
    assert trajectory.turns[1].response_ids_T.tolist() == [5, 6]
    assert trajectory.turns[1].logprobs_T.tolist() == pytest.approx([-0.1, -0.2])
    assert trajectory.turns[1].logprobs_exact


def test_what_the_recipe_leaves_out_is_not_read(hand, tmp_path):
    """Only kept trajectories of the split come, grouped by `group_id`, with their shaping."""
    turns = [hand.turn([1], [2], [-0.5], shaping=0.25)]
    path = hand.dataset(
        tmp_path,
        [
            hand.trajectory("kept", turns, reward=1.0, group_id="signature:s"),
            hand.trajectory("repeat", turns, reward=1.0, excluded_because=["duplicate"]),
            hand.trajectory("held-out", turns, reward=1.0, split="validation"),
        ],
    )
    (trajectory,) = read_trajectories(path)
    assert (trajectory.trajectory_id, trajectory.task_id) == ("kept", "signature:s")
    assert trajectory.turns[0].shaping == 0.25
    (held_out,) = read_trajectories(path, split="validation")
    assert held_out.trajectory_id == "held-out"
    left = (
        r"no trajectory in split 'test'; it holds {'train': 1, 'validation': 1} and 1 that its rec"
    )
    with pytest.raises(DataError, match=left):
        read_trajectories(path, split="test")


def test_named_rewards_are_those_that_count(hand, tmp_path):
    """Of each name the last one, a signed one before all; parts of a recipe stand for them."""

    def record(name, value, time_ns, **columns):
        plain = {"scope": "trajectory", "kind": "outcome", "trusted": True, "superseded": False}
        return plain | {"name": name, "value": value, "time_ns": time_ns} | columns

    rewards = [
        record("quality", 0.2, 1),
        record("quality", 0.8, 2),
        record("cost", 5.0, 1, signature="valid"),
        record("cost", 6.0, 2, signature="missing"),
        record("judge", 1.0, 3, trusted=False),
        record("old", 1.0, 3, superseded=True),
        record("step", 1.0, 3, scope="step", kind="process"),
    ]
    parts = [
        {"name": "quality", "value": 0.8, "weight": 2.0},
        {"name": "speed", "value": None, "weight": 1.0},
    ]
    path = hand.dataset(
        tmp_path,
        [
            hand.trajectory("plain", [hand.turn([1], [2])], reward=0.8, rewards=rewards),
            hand.trajectory("recipe", [hand.turn([1], [2])], reward=1.6, reward_parts=parts),
            hand.trajectory("single", [hand.turn([1], [2])], reward=1.0),
        ],
    )
    plain, recipe, single = read_trajectories(path)
    assert (plain.rewards, plain.reward_weights) == ({"quality": 0.8, "cost": 5.0}, {})
    assert recipe.rewards == {"quality": 0.8}
    assert recipe.reward_weights == {"quality": 2.0, "speed": 1.0}
    assert single.rewards == {}


def test_a_prompt_whose_base_is_missing_is_unknown(hand, tmp_path):
    """A base turn without ids, or one that is too short, leaves no ids rather than wrong ones."""
    turns = [
        hand.turn(None, None),
        hand.turn([4], [5], [-0.1], prompt_base_turn=0, prompt_base_length=3),
    ]
    path = hand.dataset(tmp_path, [hand.trajectory("t", turns, reward=1.0)])
    (trajectory,) = read_trajectories(path)
    assert [turn.response_ids_T for turn in trajectory.turns] == [None, None]
    assert not trajectory.turns[1].logprobs_exact


def test_masked_tokens_are_no_tokens(hand, tmp_path):
    """A turn whose ids hold masks has none to train on; what goes on from it is told by itself."""
    turns = [
        hand.turn([1, -1], [3], [-0.5], token_provenance="redacted"),
        hand.turn([4], [5], [None], token_provenance="redacted", prompt_base_turn=0),
        hand.turn([7], [8, 9], [-0.1, None], logprob_provenance="redacted"),
    ]
    path = hand.dataset(tmp_path, [hand.trajectory("t", turns, reward=1.0)])
    (trajectory,) = read_trajectories(path)
    assert [turn.prompt_ids_T is None for turn in trajectory.turns] == [True, True, False]
    assert [turn.response_ids_T is None for turn in trajectory.turns] == [True, True, False]
    assert not any(turn.logprobs_exact for turn in trajectory.turns)


def test_message_graphs_are_read_for_the_trajectories_asked(hand, tmp_path):
    """Nodes by id with parent and message; other trajectories stay on disk."""
    messages = [{"node_id": "n", "parent_id": None, "message": '{"role": "user", "parts": []}'}]
    path = hand.dataset(
        tmp_path,
        [
            hand.trajectory("a", [], reward=None, messages=messages),
            hand.trajectory("b", [], reward=None, messages=messages),
        ],
    )
    graphs = read_message_graphs(path, ["b"])
    assert list(graphs) == ["b"]
    assert graphs["b"]["n"].message == {"role": "user", "parts": []}


def test_tables_are_pinned_at_the_manifests_version(hand, tmp_path):
    """Rows appended after the manifest was written are not seen."""
    path = hand.dataset(tmp_path, [hand.trajectory("t", [], reward=1.0)])
    newer = scan_table(path, "trajectories").collect().with_columns(trajectory_id=pl.lit("u"))
    newer.write_delta(str(path / "trajectories"), mode="append")
    assert scan_table(path, "trajectories").collect()["trajectory_id"].to_list() == ["t"]


def test_no_dataset_says_how_to_build_one(tmp_path):
    """A folder without a manifest."""
    with pytest.raises(DataError, match=r"no dataset here .* build one with `starpo-trace export"):
        read_manifest(tmp_path)


def test_damaged_and_foreign_manifests_are_refused(hand, tmp_path):
    """Half a JSON file, and one of another schema version."""
    (tmp_path / "manifest.json").write_text('{"schema_version"')
    with pytest.raises(DataError, match="not a dataset manifest"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": "99", "tables": {}}))
    with pytest.raises(DataError, match="schema version 99"):
        read_manifest(tmp_path)


def test_empty_split_says_what_there_is(hand, tmp_path):
    """Asking for the test split of a train-only dataset names both."""
    path = hand.dataset(tmp_path, [hand.trajectory("t", [], reward=1.0)])
    with pytest.raises(DataError, match=r"no trajectory in split 'test'; it holds {'train': 1}"):
        read_trajectories(path, split="test")


def read_rewarded(hand, path, rewards, *, logprobs=True, **columns):
    turn = hand.turn([1], [2], [-0.5] if logprobs else None)
    return read_trajectories(
        hand.dataset(
            path,
            [
                hand.trajectory(f"t{i}", [turn], reward=reward, **columns)
                for i, reward in enumerate(rewards)
            ],
        )
    )


def test_auto_picks_topr_on_exact_data(hand, tmp_path):
    """Exact ids, exact log-probabilities and rewards that differ."""
    facts = describe_data(read_rewarded(hand, tmp_path, [1.0, 0.0]))
    choice = choose_algorithm("auto", facts)
    assert choice.algorithm == "topr"
    assert "2 of 2 trajectories have a reward, exact ids" in choice.reason


def test_without_logprobs_starpo_is_refused_and_bc_allowed(hand, tmp_path):
    """No ratio of 1 is assumed: the refusal says what is missing and what is legal."""
    facts = describe_data(read_rewarded(hand, tmp_path, [1.0, 0.0], logprobs=False))
    with pytest.raises(
        ProvenanceError, match=r"importance ratios .* \(logprob_missing in 2\).* filtered_bc\."
    ):
        choose_algorithm("starpo", facts)
    assert choose_algorithm("filtered_bc", facts).algorithm == "filtered_bc"
    auto = choose_algorithm("auto", facts)
    assert auto.algorithm == "topr_reference"
    assert "topr refused (importance ratios" in auto.reason
    equal = describe_data(read_rewarded(hand, tmp_path / "equal", [1.0, 1.0], logprobs=False))
    cloned = choose_algorithm("auto", equal)
    assert cloned.algorithm == "filtered_bc"
    assert "topr_reference refused (every reward is 1" in cloned.reason


def test_kto_is_refused_where_the_threshold_leaves_nothing_bad(hand, tmp_path):
    """Rewards differ, and all of them are good."""
    facts = describe_data(read_rewarded(hand, tmp_path, [1.0, 0.8]))
    with pytest.raises(ProvenanceError, match=r"every trajectory is good, .* = 0\.5 on"):
        choose_algorithm("kto", facts, Terms(good_from=0.5))
    assert choose_algorithm("kto", facts, Terms(good_from=0.9)).algorithm == "kto"


def test_estimated_logprobs_are_not_exact(hand, tmp_path):
    """Log-probabilities of another temperature cannot form ratios."""
    turn = hand.turn([1], [2], [-0.5], logprob_provenance="estimated")
    path = hand.dataset(tmp_path, [hand.trajectory("t", [turn], reward=1.0)])
    facts = describe_data(read_trajectories(path))
    assert (facts.num_exact, facts.reasons) == (0, {"logprob_estimated": 1})


def test_dataset_without_rewards_is_refused(hand, tmp_path):
    """Nothing can be learned, by any algorithm, and the error says how to record a reward."""
    facts = describe_data(read_rewarded(hand, tmp_path, [None, None]))
    for name in ("auto", "starpo", "filtered_bc"):
        with pytest.raises(DataError, match=r"none of 2 trajectories has a trusted reward"):
            choose_algorithm(name, facts)


def test_equal_rewards_cannot_teach_starpo(hand, tmp_path):
    """All rewards 1: every advantage is 0."""
    facts = describe_data(read_rewarded(hand, tmp_path, [1.0, 1.0]))
    with pytest.raises(ProvenanceError, match="every reward is 1, so no advantage differs from 0"):
        choose_algorithm("starpo", facts)


def test_lone_attempts_cannot_be_compared_in_groups(hand, tmp_path):
    """Without a task id nothing is comparable; a critic needs no groups."""
    facts = describe_data(read_rewarded(hand, tmp_path, [1.0, 0.0], task_id=None))
    with pytest.raises(ProvenanceError, match="none of 2 tasks has attempts with different"):
        choose_algorithm("starpo", facts)
    assert choose_algorithm("starpo", facts, Terms(needs_groups=False)).algorithm == "starpo"


def test_only_the_named_models_turns_must_be_exact(hand, tmp_path):
    """A turn of another model without ids does not spoil a trajectory when it is not trained."""
    turns = [hand.turn([1], [2], [-0.5]), hand.turn(None, None, model="judge")]
    path = hand.dataset(tmp_path, [hand.trajectory("t", turns, reward=1.0)])
    trajectories = read_trajectories(path)
    assert describe_data(trajectories).num_exact == 0
    assert describe_data(trajectories, models=["tiny"]).num_exact == 1


def damage(path, what):
    (file,) = (path / "turns").glob("*.parquet")
    if what == "missing":
        file.unlink()
    elif what == "changed":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        text = (path / "manifest.json").read_text()
        (path / "manifest.json").write_text(text.replace('"version": 0', '"version": 7'))


@pytest.mark.parametrize(
    ("what", "reason", "hashed"),
    [
        ("missing", "is missing", True),
        ("missing", "is missing", False),
        ("changed", "was changed", True),  # without hashes nobody could tell
        ("version", "version 7 cannot be", True),
        ("version", "version 7 cannot be", False),
    ],
)
def test_damaged_dataset_is_refused(hand, tmp_path, what, reason, hashed):
    """A lost file, flipped bytes, a version that is not there: one line that names the table."""
    path = hand.dataset(tmp_path, [hand.trajectory("t", [hand.turn([1], [2])], reward=1.0)])
    if hashed:
        values = json.loads((path / "manifest.json").read_text())
        for name, table in values["tables"].items():
            table["files"] = {
                file.name: blake2b(file.read_bytes(), digest_size=16).hexdigest()
                for file in (path / name).glob("*.parquet")
            }
        (path / "manifest.json").write_text(json.dumps(values))
        assert scan_table(path, "turns").collect().height == 1
    damage(path, what)
    with pytest.raises(DataError, match=rf"turns: does not match manifest.json \(.*{reason}") as e:
        scan_table(path, "turns")
    assert str(e.value).endswith("export again.")
    assert "\n" not in str(e.value)
