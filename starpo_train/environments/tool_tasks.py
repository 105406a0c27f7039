"""A database, functions that read and change it, users who want something -> an environment.

A run succeeds as in tau-bench: the database ends as the expected calls leave a fresh copy of it,
and the user was told what they had to be told. How the agent got there does not matter.

    def refund(state: dict, order: str) -> str:
        '''Refund an order.'''
        if order not in state["orders"]:
            raise ToolError(f"no order {order}")
        state["orders"][order] = "refunded"
        return "done"

    class Shop(ToolEnvironment):
        name, version, functions = "shop", "1", (refund,)

        def list_tasks(self, split, count, seed):
            return [ToolTask(id="1", user_turns=["Refund order 44."],
                             actions=[("refund", {"order": "44"})])]

        def make_state(self, task):
            return {"orders": {"44": "paid"}}
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starpo_train.environments.calls import CallEpisode, ToolError
from starpo_train.environments.functions import FunctionTool, make_function_tool
from starpo_train.environments.protocol import Feedback, Message, Task
from starpo_train.environments.users import SimulatedUser, User, follow_script
from starpo_train.errors import RolloutError
from starpo_train.evals.answers import list_missing
from starpo_train.evals.calls import hash_state

Action = tuple[str, Mapping[str, Any]]
"""A tool's name and its arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolTask(Task):
    """A task of a `ToolEnvironment`."""

    user_turns: Sequence[str] = ()
    """What the user says, one after the other; or"""
    instruction: str | None = None
    """what a simulated user is told. Without a simulator it is what the user says, once."""
    actions: Sequence[Action] = ()
    """Calls that leave the database as it should be."""
    outputs: Sequence[str] = ()
    """What the user has to be told."""


class ToolEnvironment(ABC):
    """Base of environments of tool tasks.

    Args:
        user: Keyword arguments of `SimulatedUser`, which plays the users of tasks that have an
            instruction; None: it is said word for word.
    """

    name: str = ""
    version: str | None = None
    system: str = ""
    """What the agent has to know and keep to."""
    functions: Sequence[Callable[..., Any]] = ()
    """The tools: state first, then typed parameters. A `ToolError` is read by the model."""
    writing: Sequence[str] = ()
    """Names of those that change the state: only they are held against the expected calls."""
    ending: Sequence[str] = ()
    """Names of those after which the run is over, such as a transfer to a human."""

    def __init__(self, *, user: Mapping[str, Any] | None = None) -> None:
        self._tools = {tool.name: tool for tool in map(make_function_tool, self.functions)}
        if not self.name or not self._tools:
            raise RolloutError(f"{type(self).__name__} needs a name and functions")
        for name in (*self.writing, *self.ending):
            if name not in self._tools:
                raise RolloutError(f"{self.name}: there is no function {name!r}")
        self._user = None if user is None else SimulatedUser(**user)

    @abstractmethod
    def list_tasks(self, split: str, count: int, seed: int) -> Sequence[ToolTask]:
        """Up to `count` tasks of a split."""

    @abstractmethod
    def make_state(self, task: ToolTask) -> Any:
        """A fresh database, as JSON values; the same one each time."""

    def tasks(self, split: str, count: int, seed: int) -> list[ToolTask]:
        """The same tasks, with what is right by the names that evaluators know.

        Raises:
            RolloutError: expected calls that fail on a fresh database.
        """
        return [self._describe(task) for task in self.list_tasks(split, count, seed)]

    def start(self, task: ToolTask, seed: int) -> "ToolEpisode":
        """Begin with a fresh database."""
        if self._user is not None and task.instruction is not None:
            user = self._user.follow(task.instruction, seed=seed)
        else:
            user = follow_script(task.user_turns or [task.instruction or ""])
        return ToolEpisode(
            tools=self._tools,
            ending=self.ending,
            state=self.make_state(task),
            wanted=self.hash_expected(task),
            outputs=task.outputs,
            system=self.system,
            user=user,
        )

    def solve(self, task: ToolTask) -> list[Message]:
        """What an agent does that knows the answer: the calls, then the outputs, or beside the last."""
        messages: list[Message] = [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": f"call_{number}",
                        "type": "function",
                        "function": {"name": name, "arguments": json.dumps(dict(arguments))},
                    }
                ],
            }
            for number, (name, arguments) in enumerate(task.actions)
        ]
        outputs = "\n".join(task.outputs)
        if task.actions and task.actions[-1][0] in self.ending:  # nothing can be said after it
            return [*messages[:-1], {**messages[-1], "content": outputs or None}]
        return [*messages, {"role": "assistant", "content": outputs or "Done."}]

    def hash_expected(self, task: ToolTask) -> str:
        """Hash of the state after the expected calls on a fresh database.

        Raises:
            RolloutError: one of them fails.
        """
        state = self.make_state(task)
        for name, arguments in task.actions:
            try:
                self._tools[name].call(state, arguments)
            except Exception as error:
                raise RolloutError(
                    f"{self.name}: the expected call {name}({dict(arguments)}) of task {task.id!r} "
                    f"fails: {error!r}"
                ) from error
        return hash_state(state)

    def _describe(self, task: ToolTask) -> ToolTask:
        expected: dict[str, Any] = {"expected_state_hash": self.hash_expected(task)}
        if task.actions:
            calls = [{"name": name, "arguments": dict(each)} for name, each in task.actions]
            expected["expected_calls"] = calls
        if self.writing:
            expected["counted_tools"] = list(self.writing)
        if task.outputs:
            expected["required_outputs"] = list(task.outputs)
        return replace(task, expected={**expected, **task.expected})


class ToolEpisode(CallEpisode):
    """One conversation with one user."""

    def __init__(
        self,
        *,
        tools: Mapping[str, FunctionTool],
        ending: Sequence[str],
        state: Any,
        wanted: str,
        outputs: Sequence[str],
        system: str,
        user: User,
    ) -> None:
        self._functions, self._ending, self._user = tools, ending, user
        self._wanted, self._outputs = wanted, outputs
        self.state = state
        self.tools = [dict(tool.schema) for tool in tools.values()]
        self._conversation: list[Message] = []
        self._said: list[str] = []
        opening = user([])
        if opening is None:
            raise ValueError("the user has nothing to say: give user_turns or an instruction")
        self._conversation.append({"role": "user", "content": opening})
        before = [{"role": "system", "content": system}] if system else []
        self.messages = [*before, *self._conversation]

    def act(self, message: Message) -> Feedback:
        """What stands beside calls is said to the user, too."""
        if message.get("content"):
            self._said.append(message["content"])
        return super().act(message)

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, Feedback]:
        """One function, on the database."""
        result = self._functions[name].call(self.state, arguments)
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        if name in self._ending:
            return text, self._judge()
        return text, Feedback(state=self.state)

    def say(self, text: str) -> Feedback:
        """Words to the user, who answers or leaves; then the run is judged."""
        self._conversation.append({"role": "assistant", "content": text})
        answer = self._user(self._conversation)
        if answer is None:
            return self._judge()
        said = {"role": "user", "content": answer}
        self._conversation.append(said)
        return Feedback(messages=[said])

    def _judge(self) -> Feedback:
        missing = list_missing(self._outputs, self._said)
        is_right = hash_state(self.state) == self._wanted
        reason = None if is_right else "another state than expected"
        if is_right and missing:
            reason = f"not told: {', '.join(missing)}"
        return Feedback(
            state=self.state,
            end="terminated",
            reward=float(is_right and not missing),
            reason=reason,
        )


__all__ = ["Action", "ToolEnvironment", "ToolError", "ToolTask"]
