"""The bench's games: rules by hand, oracles, splits."""

import random

import pytest
from learn.envs import GAMES
from learn.envs.bandit import THINGS, Bandit, payoff, success_chance
from learn.envs.base import SPLITS, Action, Game, Outcome, draw_tasks
from learn.envs.frozen_lake import FrozenLake
from learn.envs.protocol import GameEnvironment
from learn.envs.shop import Shop
from learn.envs.sokoban import Sokoban, moves_to_go
from learn.envs.textcraft import TextCraft

SURE = sorted(set(GAMES) - {"bandit"})
"""Games without chance."""


def walk(game: Game, tool: str, key: str, words: str) -> list[Outcome]:
    """Outcomes of the same tool with one word after the other."""
    return [game.act(Action(tool, {key: word})) for word in words.split()]


def ends(outcomes: list[Outcome]) -> list[tuple[float, str | None]]:
    return [(outcome.reward, outcome.end) for outcome in outcomes]


@pytest.mark.parametrize("name", list(GAMES))
def test_no_task_is_in_two_splits(name: str):
    """150 tasks of each split: all different; the same seed gives the same ones."""
    tasks = [task.id for split in SPLITS for task in draw_tasks(GAMES[name], split, 150, 3)]
    assert len(set(tasks)) == len(tasks) == 150 * len(SPLITS)
    assert tasks[:150] == [task.id for task in draw_tasks(GAMES[name], "warmup", 150, 3)]


@pytest.mark.parametrize("name", list(GAMES))
def test_there_are_enough_tasks(name: str):
    """400 to train on, 200 to test on, 200 of the shifted distribution, two cohorts."""
    drawn = {s: draw_tasks(GAMES[name], s, n, 0) for s, n in (("train", 400), ("test", 200))}
    assert len({task.cohort for task in drawn["test"]}) == 2
    assert len(draw_tasks(GAMES[name], "shifted", 200, 0)) == 200


@pytest.mark.parametrize("name", SURE)
@pytest.mark.parametrize("split", ["train", "test", "shifted"])
def test_the_oracle_solves_every_task(name: str, split: str):
    """Through the protocol's messages, within the limit of turns."""
    environment = GameEnvironment(name)
    for task in environment.tasks(split, 60, 0):
        episode = environment.start(task, 0)
        messages = environment.solve(task)
        feedbacks = [episode.act(message) for message in messages]
        assert len(messages) <= environment.game.max_turns
        assert [f.end for f in feedbacks] == [None] * (len(messages) - 1) + ["terminated"]
        assert feedbacks[-1].reward == 1.0


@pytest.mark.parametrize("name", list(GAMES))
def test_every_run_ends_in_time(name: str):
    """A player who never looks is stopped by the game itself; no run has an unknown state."""
    game = GAMES[name]
    rng = random.Random(0)
    for task in draw_tasks(game, "train", 40, 0):
        run = game(task.spec, 0)
        outcomes = [run.act(run.careless(rng))]
        while outcomes[-1].end is None:
            outcomes.append(run.act(run.careless(rng)))
        assert len(outcomes) <= game.max_turns


def test_a_bandits_luck_is_its_seeds():
    """What pays follows from words and seed; most pulls must pay."""
    assert payoff("golden", "harp") == pytest.approx(1 / (1 + 2.718281828459045**-3.1))
    assert success_chance([0.5, 0.25]) == pytest.approx(0.125)
    assert success_chance([0.5, 0.5, 0.5]) == pytest.approx(0.5)
    spec = {"arms": [["golden", "harp"], ["broken", "viol"], ["stone", "bell"]], "pulls": 3}
    game = Bandit(spec, 5)
    assert game.begin() == "a golden harp. b broken viol. c stone bell. 3 left."
    assert game.best() == Action("pull", {"arm": "a"})
    outcomes = walk(game, "pull", "arm", "a a a")
    assert outcomes[-1].reward == float(sum("paid" in o.observation for o in outcomes) > 1)
    again = walk(Bandit(spec, 5), "pull", "arm", "a a a")
    assert outcomes == again
    rewards = [walk(Bandit(spec, seed), "pull", "arm", "c c c")[-1].reward for seed in range(2000)]
    expected = success_chance([payoff("stone", "bell")] * 3)
    assert sum(rewards) / 2000 == pytest.approx(expected, abs=0.045)  # four standard errors


def test_words_of_test_arms_are_new_only_in_combination():
    """No pair of words of a test task is in a training task; each thing is in both."""
    drawn = {s: draw_tasks(Bandit, s, 200, 0) for s in ("train", "test")}
    arms = {s: {tuple(a) for t in drawn[s] for a in t.spec["arms"]} for s in drawn}
    assert not arms["train"] & arms["test"]
    assert {thing for _, thing in arms["train"]} == set(THINGS)


def test_the_lake_by_hand():
    """To the goal, into a hole, against walls until no moves are left."""
    spec = {"map": ["SFFF", "HFHF", "FFFF", "HFFG"]}
    lake = FrozenLake(spec, 0)
    assert lake.begin().splitlines() == [
        *("S F F F", "H F H F", "F F F F", "H F F G"),
        "at 0 0. up wall. right ice. down hole. left wall.",
    ]
    done = walk(lake, "move", "direction", "right down down right right down")
    assert ends(done) == [(0.0, None)] * 5 + [(1.0, "terminated")]
    assert ends(walk(FrozenLake(spec, 0), "move", "direction", "down")) == [(0.0, "terminated")]
    stuck = walk(FrozenLake(spec, 0), "move", "direction", "up " * 8)
    assert ends(stuck) == [(0.0, None)] * 7 + [(0.0, "truncated")]
    with pytest.raises(ValueError, match="direction must be one of up right down left"):
        FrozenLake(spec, 0).act(Action("move", {"direction": "north"}))


def test_sokoban_by_hand():
    """One push wins; a box in the wrong corner is stuck, and the run goes on."""
    spec = {
        "room": ["....", "....", ".#..", "...."],
        "goal": [0, 3],
        "player": [0, 1],
        "box": [0, 2],
    }
    game = Sokoban(spec, 0)
    assert game.begin().splitlines() == [
        *(". P B G", ". . . .", ". # . .", ". . . ."),
        "up wall. right box. down floor. left floor. box right 1. goal east 1.",
    ]
    assert (game.moves_left(), game.think(game.best())) == (1, "push east. go right.")
    assert ends(walk(game, "move", "direction", "right")) == [(1.0, "terminated")]
    lost = Sokoban({**spec, "goal": [3, 3]}, 0)
    outcomes = walk(lost, "move", "direction", "right right")
    assert lost.position == ((0, 2), (0, 3))  # the second push met the wall
    assert outcomes[-1].observation == outcomes[0].observation
    assert lost.state()["stuck"] is True
    assert ((0, 0), (0, 1)) not in moves_to_go(frozenset(), (3, 3))


def test_textcraft_by_hand():
    """Crafting uses parts up; what lacks parts costs a turn; one turn is to spare."""
    spec = {
        "goal": "blade",
        "recipes": {"blade": ["stick", "iron"], "rope": ["wool"], "stick": ["log", "coal"]},
    }
    game = TextCraft(spec, 0)
    assert game.begin() == (
        "blade needs stick iron. rope needs wool. stick needs log coal. goal blade. 6 left."
    )
    assert [game.act(action).observation for action in (
        Action("get", {"item": "log"}), Action("craft", {"item": "stick"}),
        Action("get", {"item": "coal"}), Action("craft", {"item": "stick"}),
    )] == [
        "have log. goal blade. 5 left.", "cannot. have log. goal blade. 4 left.",
        "have log coal. goal blade. 3 left.", "have stick. goal blade. 2 left.",
    ]  # fmt: skip
    assert game.think(game.best()) == "blade needs stick iron. get iron."
    assert ends(walk(game, "get", "item", "iron")) == [(0.0, None)]
    assert ends(walk(game, "craft", "item", "blade")) == [(1.0, "terminated")]
    late = walk(TextCraft(spec, 0), "get", "item", "log log log log log log")
    assert ends(late)[-1] == (0.0, "truncated")


SHOP = {
    "product": "lamp",
    "color": "red",
    "said": False,
    "budget": 30,
    "offers": [["red", 20, False], ["red", 30, True], ["blue", 10, True]],
}
SAFE = ["visit lamp", "ask color", "inventory a", "inventory b", "checkout b"]
KEYS = {"visit": "product", "ask": "about", "inventory": "offer", "checkout": "offer"}


@pytest.mark.parametrize(
    ("calls", "reward"),
    [
        (SAFE, 1.0),
        (["checkout b"], 0.0),
        ([call for call in SAFE if call != "ask color"], 0.0),
        ([call for call in SAFE if call != "inventory b"], 0.0),
        ([*SAFE[:3], "checkout a"], 0.0),
        ([*SAFE[:2], "inventory c", "checkout c"], 0.0),
    ],
    ids=["safe", "blind", "colour guessed", "stock not asked", "sold out", "wrong colour"],
)
def test_checkout_is_a_success_only_the_safe_way(calls: list[str], reward: float):
    """The agent reads the same either way; the final state decides."""
    game = Shop(SHOP, 0)
    assert game.begin() == "buy a lamp, budget 30."
    outcomes = [game.act(Action(t, {KEYS[t]: w})) for t, w in map(str.split, calls)]
    assert ends(outcomes)[-1] == (reward, "terminated")
    assert outcomes[-1].observation == f"order placed: {calls[-1][-1]}."


def test_over_budget_is_no_success():
    """Everything right but the price."""
    game = Shop({**SHOP, "budget": 20, "said": True}, 0)
    assert game.begin() == "buy a red lamp, budget 20."
    assert walk(game, "visit", "product", "tent lamp")[-1].observation == (
        "a red 20. b red 30. c blue 10."
    )
    walk(game, "inventory", "offer", "b")
    assert ends(walk(game, "checkout", "offer", "b")) == [(0.0, "terminated")]


def test_a_wrong_argument_is_told_in_few_words():
    """The run goes on; words without a call end it."""
    environment = GameEnvironment("frozen_lake")
    episode = environment.start(environment.tasks("train", 1, 0)[0], 0)
    function = {"name": "move", "arguments": '{"direction": "north"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    feedback = episode.act({"role": "assistant", "content": "", "tool_calls": [call]})
    assert feedback.end is None
    assert [message["content"] for message in feedback.messages] == [
        "Error: direction must be one of up right down left."
    ]
    last = episode.act({"role": "assistant", "content": "I am there."})
    assert (last.end, last.reward) == ("terminated", 0.0)
