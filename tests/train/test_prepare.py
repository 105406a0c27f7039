"""What of a dataset is trained on, and what is refused."""

import json

import pytest

from starpo_train.errors import (
    DataError,
    ModelError,
    ProvenanceError,
)
from starpo_train.metrics import read_metrics
from starpo_train.run import train

PROMPT = [0, 20, 21]
GOOD, BAD, END = 40, 50, 1


def test_starpo_s_trains_on_the_most_varied_groups(configure, hand, model_folder, tmp_path):
    """Of four tasks, a quarter is kept: the one with one success in two."""
    turn = hand.turn(PROMPT, [GOOD, END], [-5.0, -5.0])
    rewards = {"half": [1, 0], "little": [0.6, 0.4], "none": [0, 0], "all": [1, 1]}
    dataset = hand.dataset(
        tmp_path / "data",
        [
            hand.trajectory(f"{task}-{i}", [turn], reward=float(reward), task_id=task)
            for task, values in rewards.items()
            for i, reward in enumerate(values)
        ],
    )
    result = train(configure(dataset=dataset, algorithm={"group_filter": "starpo_s"}))
    start = read_metrics(result.metrics_path)[0]
    assert {key: start[key] for key in start if "groups" in key or key == "num_trajectories"} == {
        "num_groups": 4,
        "num_groups_kept": 1,
        "groups_zero_variance": 2,
        "groups_singleton": 0,
        "num_trajectories": 2,
    }


def test_starpo_without_logprobs_is_refused_before_anything_is_written(configure, hand, tmp_path):
    """The refusal leaves no run folder behind."""
    turn = hand.turn(PROMPT, [GOOD, END])
    dataset = hand.dataset(
        tmp_path / "data",
        [hand.trajectory(f"t{i}", [turn], reward=float(i), task_id="task") for i in (0, 1)],
    )
    config = configure(dataset=dataset)
    with pytest.raises(ProvenanceError, match="logprob_missing in 2"):
        train(config)
    assert not config.run.output.exists()
    result = train(configure("bc", dataset=dataset, algorithm={"name": "filtered_bc"}))
    assert result.num_steps == 1


def write_chats(hand, folder, **columns):
    """Chats recorded without ids: one good, one bad."""
    trajectories = []
    for name, reward in (("goal", 1.0), ("hole", 0.0)):
        nodes = [("q", None, "user", "left or right?"), ("a", "q", "assistant", name)]
        messages = [
            {
                "node_id": node,
                "parent_id": parent,
                "message": json.dumps({"role": role, "parts": [{"type": "text", "content": text}]}),
            }
            for node, parent, role, text in nodes
        ]
        turn = hand.turn(None, None, input_node="q", output_node="a", **columns)
        trajectories.append(
            hand.trajectory(name, [turn], reward=reward, usable_for="sft", messages=messages)
        )
    return hand.dataset(folder, trajectories)


def test_chats_without_ids_are_rendered_for_cloning(configure, hand, tmp_path):
    """Filtered BC trains on retokenized rows and says so."""
    dataset = write_chats(hand, tmp_path / "data")
    result = train(configure(dataset=dataset, algorithm={"name": "filtered_bc"}))
    start = read_metrics(result.metrics_path)[0]
    assert (start["algorithm"], start["num_retokenized_rows"]) == ("filtered_bc", 1)


def test_what_rendering_found_is_in_the_start_record(configure, hand, tmp_path):
    """Tools that the template ignores: left out with that reason, or kept and reported."""
    tools = json.dumps([{"name": "go", "parameters": {"type": "object"}}])
    dataset = write_chats(hand, tmp_path / "data", tool_definitions=tools)
    options = {"dataset": dataset, "algorithm": {"name": "filtered_bc"}}
    with pytest.raises(DataError, match=r"1 template_ignores_tools: .*docs/tokens\.md"):
        train(configure(**options))
    result = train(configure("kept", data={"lossy_rendering": "keep"}, **options))
    start = read_metrics(result.metrics_path)[0]
    assert start["rendering"] == {"template_ignores_tools": 1}
    assert start["left_out"] == {"below_threshold": 1}


def test_rendering_needs_a_chat_template(configure, hand, tmp_path):
    """Chats without ids and a model without a template: the error names the model."""
    model = hand.model(tmp_path / "m")
    hand.tokenizer(chat_template=None).save_pretrained(model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    dataset = write_chats(hand, tmp_path / "data")
    with pytest.raises(ModelError, match="no chat template"):
        train(configure(base=model, dataset=dataset, algorithm={"name": "filtered_bc"}))


def test_ids_of_another_vocabulary_are_refused(configure, hand, tmp_path):
    """Token id 300 does not exist in a vocabulary of 300."""
    rows = [
        hand.trajectory(f"t{i}", [hand.turn([5], [300], [-1.0])], reward=float(i)) for i in (0, 1)
    ]
    with pytest.raises(DataError, match=r"t0: token id 300 is outside the vocabulary"):
        train(configure(dataset=hand.dataset(tmp_path / "data", rows)))


def test_models_that_no_turn_is_of_are_refused(configure):
    """The error names those that are there."""
    with pytest.raises(DataError, match=r"data\.models = \['gpt-9'\]: no turn .* there are 'tiny'"):
        train(configure(data={"models": ["gpt-9"]}))


def test_a_device_of_no_kind_is_refused(configure):
    """One line, before anything is read."""
    with pytest.raises(ModelError, match=r"model\.device = 'gpu': no such kind of device"):
        train(configure(model={"device": "gpu"}))


def test_negative_ids_are_refused(configure, hand, tmp_path):
    """A mask that a dataset calls exact reaches no model."""
    rows = [
        hand.trajectory(f"t{i}", [hand.turn([-1], [5], [-1.0])], reward=float(i)) for i in (0, 1)
    ]
    with pytest.raises(DataError, match=r"t0: token id -1 is none"):
        train(configure(dataset=hand.dataset(tmp_path / "data", rows)))


def test_truncated_runs_can_be_left_out(configure, hand, tmp_path):
    """`data.truncated = "drop"` takes a run out and counts it."""
    turn = hand.turn(PROMPT, [GOOD, END], [-5.0, -5.0])
    ends = ["terminated", "terminated", "truncated"]
    rows = [
        hand.trajectory(f"t{i}", [turn], reward=float(i == 0), end=end)
        for i, end in enumerate(ends)
    ]
    dataset = hand.dataset(tmp_path / "data", rows)
    result = train(configure(dataset=dataset, data={"truncated": "drop"}))
    start = read_metrics(result.metrics_path)[0]
    assert (start["num_trajectories"], start["left_out"]) == (2, {"truncated": 1})


def test_auto_leaves_out_what_failed_because_it_was_cut(configure, hand, tmp_path):
    """A cut success counts; a named algorithm gets all; `keep` is heard by `auto`, too."""
    turn = hand.turn(PROMPT, [GOOD, END], [-5.0, -5.0])
    ends = {"a": (1.0, "terminated"), "b": (0.0, "terminated"), "c": (1.0, "truncated")}
    ends |= {"d": (0.0, "truncated")}
    rows = [hand.trajectory(t, [turn], reward=reward, end=end) for t, (reward, end) in ends.items()]
    dataset = hand.dataset(tmp_path / "data", rows)

    def read_start(name, **sections):
        result = train(configure(name, dataset=dataset, **sections))
        start = read_metrics(result.metrics_path)[0]
        return start["algorithm"], start["num_trajectories"], start["left_out"]

    assert read_start("auto", algorithm={"name": "auto"}) == ("topr", 3, {"truncated": 1})
    assert read_start("kto", algorithm={"name": "kto"}) == ("kto", 4, {})
    kept = {"algorithm": {"name": "auto"}, "data": {"truncated": "keep"}}
    assert read_start("keep", **kept) == ("topr", 4, {})
    del rows[1]
    cloned = hand.dataset(tmp_path / "data of cut", rows)
    result = train(configure("cut", dataset=cloned, algorithm={"name": "auto"}))
    assert read_metrics(result.metrics_path)[0]["algorithm"] == "filtered_bc"


def test_bilevel_gae_uses_turn_order_across_branches(configure, hand, tmp_path):
    """Equal states, so V is the mean return: later turns of a success are worth more.

    Two-turn trajectories whose second turn is a branch; the recorded reward is at the last turn.
    """
    turns = [
        hand.turn([20, 21], [GOOD, END], [-5.0, -5.0]),
        hand.turn([30, 31], [BAD, END], [-5.0, -5.0]),
    ]
    rows = [
        hand.trajectory(f"t{i}", turns, reward=float(i % 2), task_id=f"k{i % 10}")
        for i in range(20)
    ]
    result = train(
        configure(
            dataset=hand.dataset(tmp_path / "data", rows),
            algorithm={"advantage": "bilevel_gae"},
            train={"trajectories_per_step": 20},
        )
    )
    start, step = read_metrics(result.metrics_path)[:2]
    assert start["num_rows"] == 40
    assert "critic_explained_variance" in start
    # returns are (.95, 1) or (0, 0), V = (.475, .5): advantages +-(.475+.025...), whitened to ~1
    assert step["advantage_mean_abs"] == pytest.approx(1, abs=0.1)


def test_lone_attempts_are_compared_with_a_critic(configure, hand, tmp_path):
    """Equal states, so V is about the mean outcome .5: advantages +-.5 without a second attempt."""
    turn = hand.turn([20, 21], [GOOD, END], [-5.0, -5.0])
    rows = [hand.trajectory(f"t{i}", [turn], reward=float(i % 2), task_id=None) for i in range(20)]
    result = train(
        configure(
            dataset=hand.dataset(tmp_path / "data", rows),
            algorithm={"advantage": "dr_grpo", "singleton": "learned_value"},
            train={"trajectories_per_step": 20},
        )
    )
    start, step = read_metrics(result.metrics_path)[:2]
    assert (start["groups_singleton"], start["num_trajectories"]) == (20, 20)
    assert "critic_explained_variance" in start
    assert step["advantage_mean_abs"] == pytest.approx(0.5, abs=0.1)
