"""A game -> an environment of `starpo_train.environments`: `learn.envs.protocol:GameEnvironment`."""

import json
from collections.abc import Sequence
from typing import Any

from learn.envs import GAMES
from learn.envs.base import Action, Game, draw_tasks
from starpo_train.environments import CallEpisode, Feedback, Message, Task, ToolError


class GameEnvironment:
    """One of the games.

    Args:
        game: Its name.
    """

    version = "1"

    def __init__(self, game: str) -> None:
        self.game = GAMES[game]
        self.name = game

    def tasks(self, split: str, count: int, seed: int) -> Sequence[Task]:
        """`count` tasks of a split."""
        return [
            Task(id=task.id, input=dict(task.spec), cohort=task.cohort)
            for task in draw_tasks(self.game, split, count, seed)
        ]

    def start(self, task: Task, seed: int) -> "GameEpisode":
        """One run of a task."""
        return GameEpisode(self.game(task.input, seed))

    def solve(self, task: Task) -> list[Message]:
        """The oracle's messages; in the bandit, luck decides whether they succeed."""
        messages = []
        game = self.game(task.input, 0)
        end = None
        while end is None:
            action = game.best()
            messages.append(write_message(game, action, f"call_{len(messages)}"))
            end = game.act(action).end
        return messages


class GameEpisode(CallEpisode):
    """One run: every tool takes one argument, every result is a short line."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.tools = game.tools
        self.messages = begin_messages(game)

    @property
    def state(self) -> dict[str, Any]:
        """As the game sees itself."""
        return self.game.state()

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, Feedback]:
        """Play it."""
        try:
            outcome = self.game.act(Action(name, arguments))
        except ValueError as error:
            raise ToolError(str(error)) from error
        reward = None if outcome.end is None else outcome.reward
        end: Any = outcome.end
        return outcome.observation, Feedback(state=self.game.state(), end=end, reward=reward)


def begin_messages(game: Game) -> list[Message]:
    """The messages before the first answer."""
    return [
        {"role": "system", "content": game.system},
        {"role": "user", "content": game.begin()},
    ]


def write_message(game: Game, action: Action, call_id: str) -> Message:
    """An action -> the message of somebody who thinks and then calls a tool."""
    function = {"name": action.tool, "arguments": json.dumps(dict(action.arguments))}
    return {
        "role": "assistant",
        "content": "",
        "reasoning_content": game.think(action),
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }
