"""A gymnasium environment with numbered actions -> a game for a model that reads text.

The model names an action, as a call of the tool `act` or, with `protocol="text"`, in words: the
last action that its answer names.
"""

import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal

from starpo_train.environments.calls import CallEpisode
from starpo_train.environments.loading import find_attribute
from starpo_train.environments.protocol import Feedback, Task
from starpo_train.environments.toy_text import ACTIONS, DESCRIPTIONS, GOALS
from starpo_train.errors import RolloutError

TOOL: Final = "act"

_HIGHLIGHTED: Final = re.compile(r"\x1b\[4\dm(.*?)\x1b\[0m")
_COLOUR: Final = re.compile(r"\x1b\[[\d;]*m")

Protocol = Literal["tool", "text"]


class GymnasiumEnvironment:
    """`gymnasium:ID`. A task is a beginning; a run's own seed draws the chance after it.

    Args:
        env_id: As in `gymnasium.make`.
        actions: Names of the actions, in their order; needed where gymnasium's are not known here.
        protocol: "tool" or "text".
        describe: Observation -> text, a function or `module:function` or `file.py:function`;
            default: what is known of toy-text games, `render_mode="ansi"`, the observation itself.
        goal: What the model is told to do.
        success_return: Sum of rewards from which on a run is worth 1, else 0; default: it is worth
            that sum.
        env_args: Keyword arguments of `gymnasium.make`, such as `max_episode_steps`.

    Raises:
        RolloutError: no such environment, or its actions are not numbered.
    """

    def __init__(
        self,
        env_id: str,
        *,
        actions: Sequence[str] | None = None,
        protocol: Protocol = "tool",
        describe: Callable[[Any], str] | str | None = None,
        goal: str | None = None,
        success_return: float | None = None,
        **env_args: Any,
    ) -> None:
        if protocol not in ("tool", "text"):
            raise RolloutError(f"environment_args.protocol = {protocol!r}: use tool or text")
        self.name, self._args = env_id, env_args
        self._protocol: Protocol = protocol
        kind = env_id.rpartition("/")[2].partition("-")[0]
        if isinstance(describe, str):
            describe = find_attribute(describe, where=f"environment_args.describe = {describe!r}")
        self._describe: Any = describe or DESCRIPTIONS.get(kind)
        self._goal = goal or GOALS.get(kind) or f"Play {env_id} as well as you can."
        self._success_return = success_return
        env = self._make()
        try:
            version = getattr(env.spec, "version", None)
            self.version = None if version is None else str(version)
            self._first, self.actions = _name_actions(env, env_id, actions or ACTIONS.get(kind))
            if self._describe is None and "ansi" in (env.metadata.get("render_modes") or ()):
                self._args = {"render_mode": "ansi", **env_args}
        finally:
            env.close()

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Beginnings: each is a reset with a seed made of split, seed and number."""
        ids = [f"{self.name}/{split}/{seed}/{n}" for n in range(count)]
        return [Task(id=each, input=_make_seed(each)) for each in ids]

    def start(self, task: Task, seed: int) -> "GymnasiumEpisode":
        """Reset with the task's seed."""
        return GymnasiumEpisode(
            self._make(),
            begin_seed=task.input,
            chance_seed=seed,
            goal=self._goal,
            actions={name: self._first + n for n, name in enumerate(self.actions)},
            protocol=self._protocol,
            describe=self._describe,
            success_return=self._success_return,
        )

    def _make(self) -> Any:
        try:
            import gymnasium
        except ImportError as error:
            raise RolloutError("gymnasium is missing: pip install gymnasium") from error
        try:
            return gymnasium.make(self.name, **self._args)
        except (gymnasium.error.Error, TypeError) as error:
            raise RolloutError(f"gymnasium:{self.name} with {self._args}: {error}") from error


class GymnasiumEpisode(CallEpisode):
    """One run of a game."""

    def __init__(
        self,
        env: Any,
        *,
        begin_seed: int,
        chance_seed: int,
        goal: str,
        actions: dict[str, int],
        protocol: Protocol,
        describe: Callable[[Any], str] | None,
        success_return: float | None,
    ) -> None:
        from gymnasium.utils.seeding import np_random

        self._env, self._actions, self._describe = env, actions, describe
        self._protocol, self._success_return = protocol, success_return
        self._return, self._num_steps = 0.0, 0
        self._seen, _ = env.reset(seed=begin_seed)
        env.unwrapped.np_random, _ = np_random(chance_seed)
        self.state = self._describe_state()
        self.tools = [] if protocol == "text" else [_make_tool(list(actions))]
        self._ask = (
            f"Call {TOOL} with one of: {', '.join(actions)}."
            if self.tools
            else f"Answer with one of: {', '.join(actions)}."
        )
        self.messages = [
            {"role": "system", "content": f"{goal} {self._ask}"},
            {"role": "user", "content": self._show()},
        ]

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, Feedback]:
        """The tool `act`."""
        _ = name
        return self._step(arguments["action"])

    def say(self, text: str) -> Feedback:
        """Words: with `protocol="text"` the last action they name, else a reminder."""
        if self._protocol == "text":
            names = "|".join(sorted(map(re.escape, self._actions), key=len, reverse=True))
            named = re.findall(rf"(?<!\w)({names})(?!\w)", text, flags=re.IGNORECASE)
            if named:
                by_lower = {name.lower(): name for name in self._actions}
                shown, feedback = self._step(by_lower[named[-1].lower()])
                return Feedback(
                    messages=[{"role": "user", "content": shown}],
                    process_reward=feedback.process_reward,
                    state=feedback.state,
                    end=feedback.end,
                    reward=feedback.reward,
                )
        return Feedback(messages=[{"role": "user", "content": self._ask}])

    def cut(self) -> float:
        """What it is worth so far."""
        if self._success_return is None:
            return self._return
        return float(self._return >= self._success_return)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _step(self, action: str) -> tuple[str, Feedback]:
        self._seen, reward, terminated, truncated, _ = self._env.step(self._actions[action])
        self._return += float(reward)
        self._num_steps += 1
        end = "terminated" if terminated else "truncated" if truncated else None
        return self._show(), Feedback(
            process_reward=float(reward),
            state=self._describe_state(),
            end=end,
            reward=None if end is None else self.cut(),
        )

    def _show(self) -> str:
        if self._describe is not None:
            return str(self._describe(self._seen))
        if self._env.render_mode == "ansi":
            return clean_ansi(str(self._env.render()))
        return str(_to_plain(self._seen))

    def _describe_state(self) -> dict[str, Any]:
        return {
            "observation": _to_plain(self._seen),
            "return": self._return,
            "num_steps": self._num_steps,
        }


def clean_ansi(text: str) -> str:
    r"""Terminal colours -> plain text; what stood on a coloured ground stands in brackets.

    >>> clean_ansi("\x1b[41mS\x1b[0mFFF")
    '[S]FFF'
    """
    return _COLOUR.sub("", _HIGHLIGHTED.sub(r"[\1]", text)).strip("\n")


def _name_actions(
    env: Any, env_id: str, names: Sequence[str] | None
) -> tuple[int, tuple[str, ...]]:
    """Environment -> the number of its first action, and the names of all."""
    import gymnasium

    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Discrete):
        raise RolloutError(
            f"gymnasium:{env_id}: its actions are {space}; only numbered ones (Discrete) can be "
            "named by a model. Wrap it, or write an environment of your own"
        )
    names = tuple(map(str, names or range(int(space.n))))
    if len({name.lower() for name in names}) != space.n or len(names) != space.n:
        raise RolloutError(
            f"gymnasium:{env_id} has {space.n} actions; environment_args.actions = {list(names)} "
            "must name each, differently"
        )
    return int(space.start), names


def _make_tool(actions: list[str]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "Take one action.",
            "parameters": {
                "type": "object",
                "properties": {"action": {"type": "string", "enum": actions}},
                "required": ["action"],
            },
        },
    }


def _to_plain(value: Any) -> Any:
    """Observation -> JSON."""
    if isinstance(value, dict):
        return {str(key): _to_plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _make_seed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest()) % 2**31
