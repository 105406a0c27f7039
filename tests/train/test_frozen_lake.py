"""The example's environment and agent, on maps walked by hand."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "frozen_lake"
LAKE = ("SFF", "HFH", "FFG")


@pytest.fixture(scope="module")
def example(import_from: Callable[..., Any]) -> Iterator[SimpleNamespace]:
    """The example's modules, imported as its own scripts import them."""
    pytest.importorskip("gymnasium", reason="needs the extra `demo`")
    with import_from(EXAMPLE, "environment", "agent", "warmup") as modules:
        yield SimpleNamespace(**modules)
    import starpo_trace

    starpo_trace.uninstrument()  # importing the agent instruments this process


def test_a_walk_to_the_goal(example: SimpleNamespace):
    """Right, down, down, right: what is read on the way, and the reward at the end."""
    lake = example.environment.FrozenLake(LAKE)
    assert lake.observe() == "at 0 0. up wall. right ice. down hole. left wall."
    outcomes = [lake.move(direction) for direction in ("right", "down", "down", "right")]
    assert [outcome.observation for outcome in outcomes] == [
        "at 0 1. up wall. right ice. down ice. left ice.",
        "at 1 1. up ice. right hole. down ice. left hole.",
        "at 2 1. up ice. right goal. down wall. left ice.",
        "You reached the goal.",
    ]
    assert [(o.reward, o.end) for o in outcomes] == [(0.0, None)] * 3 + [(1.0, "terminated")]


def test_a_hole_ends_the_run_without_reward(example: SimpleNamespace):
    """Down from the start lies a hole."""
    outcome = example.environment.FrozenLake(LAKE).move("down")
    assert (outcome.observation, outcome.reward, outcome.end) == (
        "You fell into a hole.",
        0.0,
        "terminated",
    )


def test_the_move_limit_truncates(example: SimpleNamespace):
    """Walking into the wall leaves the agent where it is and uses up a move."""
    lake = example.environment.FrozenLake(LAKE, max_moves=2)
    assert lake.move("up").observation == "at 0 0. up wall. right ice. down hole. left wall."
    outcome = lake.move("left")
    assert (outcome.observation, outcome.reward, outcome.end) == (
        "No moves are left.",
        0.0,
        "truncated",
    )


def test_best_moves_are_the_only_way(example: SimpleNamespace):
    """Worked out by hand for the map above; cells without a way have no entry."""
    assert example.environment.best_moves(LAKE) == {
        (0, 0): "right",
        (0, 1): "down",
        (0, 2): "left",
        (1, 1): "down",
        (2, 0): "right",
        (2, 1): "right",
    }


def test_a_map_is_in_one_split_only(example: SimpleNamespace):
    """Test maps are never seen in training or warm-up, whatever the seeds."""
    maps = {
        split: set(example.environment.generate_maps(split, 60, seed))
        for seed, split in enumerate(("train", "test", "warmup"))
    }
    assert [len(found) for found in maps.values()] == [60, 60, 60]
    assert not maps["train"] & maps["test"]
    assert not maps["train"] & maps["warmup"]
    assert not maps["test"] & maps["warmup"]


def test_the_same_seed_gives_the_same_maps(example: SimpleNamespace):
    """And another seed gives others."""
    generate = example.environment.generate_maps
    assert generate("test", 20, 1) == generate("test", 20, 1)
    assert generate("test", 20, 1) != generate("test", 20, 2)


def test_an_unknown_split_is_an_error(example: SimpleNamespace):
    """It names the splits there are."""
    with pytest.raises(ValueError, match="split 'dev' is not one of test, train"):
        example.environment.generate_maps("dev", 1, 0)


class ScriptedClient:
    """Answers with the next of some tool calls or texts."""

    def __init__(self, *answers: tuple[str, str] | str) -> None:
        self.answers = list(answers)
        self.prompts: list[list[Any]] = []
        self.chat = SimpleNamespace(completions=self)

    def create(self, *, messages: list[Any], **_: Any) -> Any:
        from openai.types.chat import ChatCompletionMessage

        self.prompts.append(list(messages))
        answer = self.answers.pop(0)
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if isinstance(answer, str):
            message["content"] = answer
        else:
            name, arguments = answer
            function = {"name": name, "arguments": arguments}
            message["tool_calls"] = [{"id": "c", "type": "function", "function": function}]
        choice = SimpleNamespace(message=ChatCompletionMessage.model_validate(message))
        return SimpleNamespace(choices=[choice])


def play(example: SimpleNamespace, *answers: tuple[str, str] | str) -> tuple[Any, list[list[Any]]]:
    client = ScriptedClient(*answers)
    task = {"id": "t", "map": list(LAKE)}
    return example.agent.play(client, "m", task, 0), client.prompts


def move(direction: str) -> tuple[str, str]:
    return "move", json.dumps({"direction": direction})


def test_the_agent_plays_to_the_goal(example: SimpleNamespace):
    """Each tool result is the next observation; the reward is the environment's."""
    result, prompts = play(example, *map(move, ("right", "down", "down", "right")))
    assert result == {"reward": 1.0, "end": "terminated"}
    assert [messages[-1]["content"].splitlines()[-1] for messages in prompts] == [
        "at 0 0. up wall. right ice. down hole. left wall.",
        "at 0 1. up wall. right ice. down ice. left ice.",
        "at 1 1. up ice. right hole. down ice. left hole.",
        "at 2 1. up ice. right goal. down wall. left ice.",
    ]


@pytest.mark.parametrize(
    ("answer", "observation"),
    [
        (("fly", "{}"), "error: there is no tool 'fly', only move(direction)"),
        (move("north"), "error: direction 'north' is not one of up, right, down, left"),
        (("move", "{}"), "error: 'direction'"),
        (("move", '{"direction": '), "error: Expecting value"),
        (("move", "[]"), "error: list indices must be integers"),
        (("move", '{"direction": ["up"]}'), "error: "),
    ],
)
def test_a_malformed_call_is_told_to_the_model(
    example: SimpleNamespace, answer: tuple[str, str], observation: str
):
    """And the run goes on: here into the hole."""
    result, prompts = play(example, answer, move("down"))
    assert result == {"reward": 0.0, "end": "terminated"}
    assert prompts[1][-1]["content"].startswith(observation)


def test_an_answer_without_a_call_ends_the_run(example: SimpleNamespace):
    """There is nobody to talk to."""
    assert play(example, "I would rather not.")[0] == {"reward": 0.0, "end": "terminated"}


def test_demonstrations_are_as_careless_as_asked(example: SimpleNamespace):
    """Without mistakes every map is solved; with mistakes only, hardly any is."""
    maps = example.environment.generate_maps("warmup", 20, 0)
    ends = {
        rate: [
            example.warmup.demonstrate(lake_map, random.Random(0), mistake_rate=rate)[-1]
            for lake_map in maps
        ]
        for rate in (0.0, 1.0)
    }
    reached = [sum(m["content"] == "You reached the goal." for m in ends[r]) for r in (0.0, 1.0)]
    assert reached[0] == 20
    assert reached[1] < 5


def test_only_the_assistants_tokens_have_labels(example: SimpleNamespace):
    """Decoded, the labels are the answers; the ids are the whole conversation."""
    lake_map = example.environment.generate_maps("warmup", 1, 0)[0]
    messages = example.warmup.demonstrate(lake_map, random.Random(0), mistake_rate=0.0)
    tokenizer = example.warmup.make_tokenizer([messages])
    ids, labels = example.warmup.encode_demonstration(tokenizer, messages)
    kept = tokenizer.decode([label for label in labels if label != example.warmup.IGNORED])
    expected = "".join(
        f"<think>{m['reasoning_content']}</think><tool_call>"
        f'{{"name": "move", "arguments": {m["tool_calls"][0]["function"]["arguments"]}}}'
        "</tool_call><|im_end|>"
        for m in messages
        if m["role"] == "assistant"
    )
    assert kept == expected
    text = tokenizer.apply_chat_template(messages, tools=example.agent.TOOLS, tokenize=False)
    assert text.startswith(tokenizer.decode(ids))
