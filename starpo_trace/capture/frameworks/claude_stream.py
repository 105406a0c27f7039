"""Messages of the Claude Agent SDK's stream -> turns, tools and sub-agents of a run.

Models are called by the SDK's program, which is another process; what is recorded of a call is what
the stream tells of it (`claude_turns`). Tools of an answer may begin before it is over.
"""

import asyncio
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context

from starpo_trace import semconv
from starpo_trace.capture.agents import (
    AgentRun,
    AgentScope,
    Scope,
    ToolRun,
    begin_agent,
    begin_tool,
)
from starpo_trace.capture.exchange import LLMResponse
from starpo_trace.capture.frameworks.claude_turns import Thread, attach
from starpo_trace.capture.outcome import redact_text
from starpo_trace.capture.steps import state
from starpo_trace.messages import dump_json

_LIMITS: Final = {"error_max_turns", "error_max_budget_usd"}
_NO_STATE: Final = {"type", "subtype", "uuid", "session_id"}
_RESULT_STATE: Final = ("num_turns", "total_cost_usd", "usage", "modelUsage", "permission_denials")


class _Tool:
    """A tool that the program runs, or has the SDK run in this process."""

    def __init__(self, block: Mapping[str, Any], scope: Scope | None, context: Context | None):
        self.name = str(block["name"])
        self.input = block.get("input") or {}
        self.context = context if scope is None else scope.context
        self.scope = scope


class Conversation:
    """One session: reads the stream, and records the runs that it tells of."""

    def __init__(self, options: Any, *, has_many_runs: bool) -> None:
        self.is_interrupted = False
        """Whether the program has asked it to stop."""
        self._options = options
        self._has_many_runs = has_many_runs
        self._session_id: str | None = getattr(options, "resume", None)
        self._model = ""
        self._run: AgentScope | None = None
        self._result: Mapping[str, Any] | None = None
        self._main = Thread(_read_system_prompt(options), is_whole=True)
        self._main.is_resumed = bool(
            self._session_id or getattr(options, "continue_conversation", False)
        )
        self._agents: dict[str, Thread] = {}
        """Sub-agents, by the tool call that asked for them."""
        self._tools: dict[str, _Tool] = {}
        self._tasks: dict[str, str | None] = {}
        """What goes on in the background: id of a task -> the tool call that began it."""
        self._state: dict[str, Any] = {}

    def begin_run(self) -> Context | None:
        """Begin a run, unless one goes on; the Context for it."""
        if self._run is None:
            agent = AgentRun(name="claude", owner=self, conversation_id=self._session_id)
            self._run = begin_agent(agent)
            self._result = None
            self._state, self.is_interrupted, self._main.num_turns = {}, False, 0
            self._main.context = None if self._run is None else self._run.context
        return self._main.context

    def add_prompt(self, content: Any) -> None:
        """The program asks something."""
        self._main.add({"role": "user", "content": content})

    def find_context(self, request: Mapping[str, Any]) -> Context | None:
        """Context for what the SDK's program asks this process to do: tools, hooks, permissions."""
        message = request.get("message") or {}
        if self._run is None or message.get("method") != "tools/call":
            return self._main.context if self._run is not None else None
        params = message.get("params") or {}
        tool = self._tools.get((params.get("_meta") or {}).get("claudecode/toolUseId", ""))
        if tool is None:
            name = f"mcp__{request.get('server_name')}__{params.get('name')}"
            given = params.get("arguments") or {}
            same = (
                each
                for each in self._tools.values()
                if each.scope is not None and each.name == name and each.input == given
            )
            tool = next(same, None)
        return self._main.context if tool is None else tool.context

    def read(self, message: Mapping[str, Any]) -> None:
        """One message of the stream."""
        kind = message.get("type")
        if kind in {"assistant", "stream_event"} and self._has_many_runs:
            self.begin_run()  # also where what ended in the background wakes the session
        read = _READERS.get(str(kind))
        if read is not None and (self._run is not None or kind in _KEPT):
            read(self, message)

    def end_run(self, error: BaseException | None = None) -> None:
        """The run is over; with the last result, or because something broke or left it."""
        run, self._run = self._run, None
        if run is None:
            return
        error = self._judge_end(run, error)
        for thread in [*self._agents.values(), self._main]:
            thread.end_turn(is_left=self._result is None)
        for tool in self._tools.values():
            if tool.scope is not None:
                tool.scope.finish(error or asyncio.CancelledError("the run ended"))
        for thread in self._agents.values():
            if thread.scope is not None:
                thread.scope.finish(error)
        self._agents, self._tools, self._tasks = {}, {}, {}
        run.finish(error)
        self._main.context = None

    def _judge_end(self, run: AgentScope, error: BaseException | None) -> BaseException | None:
        result = self._result
        if result is None:
            return error or asyncio.CancelledError("left before its result")
        reason = str(result.get("terminal_reason") or "")
        if result.get("subtype") in _LIMITS:
            run.end_early(str(result["subtype"]).removeprefix("error_"))
            return error
        if reason.startswith("aborted") or self.is_interrupted:
            return asyncio.CancelledError(reason or "interrupted")
        if result.get("is_error") and error is None:
            told = result.get("errors") or [result.get("result") or result.get("subtype")]
            return _make_error("; ".join(str(each) for each in told))
        return error

    def _read_system(self, message: Mapping[str, Any]) -> None:
        subtype = message.get("subtype")
        if subtype == "init":
            self._session_id = message.get("session_id")
            self._model = str(message.get("model", ""))
            if self._session_id is not None and self._main.context is not None:
                span = trace.get_current_span(self._main.context)
                span.set_attribute(semconv.CONVERSATION_ID, redact_text(self._session_id))
            self._note_state({key: message[key] for key in message.keys() - _NO_STATE})
        elif subtype == "status" and message.get("permissionMode"):
            self._note_state({"permissionMode": message["permissionMode"]})
        elif subtype == "compact_boundary":  # a summary follows
            self._main.end_turn()
            self._main.forget()
            self._main.is_resumed = True
        elif subtype == "task_started" and message.get("is_backgrounded"):
            self._tasks[str(message.get("task_id"))] = message.get("tool_use_id")
        elif subtype in {"task_notification", "task_updated"}:
            status = message.get("status") or (message.get("patch") or {}).get("status")
            if status in {"completed", "failed", "stopped", "killed"}:
                call_id = self._tasks.pop(str(message.get("task_id")), None)
                if call_id is not None:
                    self._end_agent(call_id)

    def _note_state(self, changed: dict[str, Any]) -> None:
        """What is known of the session, where it has changed."""
        if changed.items() <= self._state.items() or self._main.context is None:
            return
        self._state = dict(sorted({**self._state, **changed}.items()))
        with attach(self._main.context):
            state(self._state, "session")

    def _read_assistant(self, message: Mapping[str, Any]) -> None:
        thread = self._find_thread(message)
        answer = message["message"]
        if answer.get("model") == "<synthetic>":  # the SDK's program speaks, no model
            if message.get("error"):
                self._note_failure(thread, message)
            return
        turn = thread.open_turn(answer, self._session_id)
        turn.blocks += answer["content"]
        turn.is_aborted = turn.is_aborted or bool(message.get("aborted"))
        for block in answer["content"]:
            if block["type"] == "tool_use" and block["id"] not in self._tools:
                tool = ToolRun(
                    name=block["name"],
                    arguments=dump_json(block.get("input")),
                    call_id=block["id"],
                )
                with attach(thread.context):
                    self._tools[block["id"]] = _Tool(block, begin_tool(tool), thread.context)

    def _note_failure(self, thread: Thread, message: Mapping[str, Any]) -> None:
        """A model call failed, as often as it was tried."""
        text = "".join(str(block.get("text", "")) for block in message["message"]["content"])
        turn = thread.open_turn({"model": self._model}, self._session_id)
        thread.turn = None
        if turn.call is not None:
            turn.call.finish(
                LLMResponse(
                    error_type=str(message["error"]), error_message=text, ended_ns=turn.ended_ns
                )
            )

    def _read_event(self, message: Mapping[str, Any]) -> None:
        event = message["event"]
        thread = self._find_thread(message)
        if event.get("type") == "message_start":
            thread.open_turn(event["message"], self._session_id, is_stream=True)
        turn = thread.turn
        if turn is not None and turn.events is not None:
            turn.events.add(event)
            turn.ended_ns = time.time_ns()
            turn.is_aborted = turn.is_aborted or "abandoned_blocks" in message

    def _read_user(self, message: Mapping[str, Any]) -> None:
        if message.get("isReplay"):
            return
        thread = self._find_thread(message)
        thread.add(message["message"])
        content = message["message"]["content"]
        for block in content if isinstance(content, list) else ():
            tool = self._tools.get(block.get("tool_use_id", ""))
            if tool is None or block.get("type") != "tool_result":
                continue
            if block["tool_use_id"] not in self._tasks.values():
                self._end_agent(block["tool_use_id"])
            scope, tool.scope = tool.scope, None
            if scope is not None:
                told = _read_result_content(block.get("content"))
                is_error = block.get("is_error")
                scope.finish(_make_error(told) if is_error else None, told)

    def _read_result(self, message: Mapping[str, Any]) -> None:
        self._result = message
        main = self._main
        if main.turn is not None and not main.turn.is_aborted:
            main.turn.learn_end(message, is_only=main.num_turns == 1)
        main.end_turn()
        main.num_turns = 0
        self._note_state({key: message[key] for key in _RESULT_STATE if key in message})
        if self._has_many_runs and not self._tasks:
            self.end_run()

    def _read_reset(self, _message: Mapping[str, Any]) -> None:
        self._main.end_turn()
        self._main.forget()

    def _read_end(self, message: Mapping[str, Any]) -> None:
        """The SDK's program has ended, or what it said cannot be read."""
        if self._has_many_runs:  # else the error leaves `query()`
            error = message.get("exception")
            if error is None and "error" in message:
                error = _make_error(message["error"])
            self.end_run(error)

    def _find_thread(self, message: Mapping[str, Any]) -> Thread:
        call_id = message.get("parent_tool_use_id")
        if call_id is None or self._run is None:
            return self._main
        thread = self._agents.get(call_id)
        if thread is None:
            thread = self._agents[call_id] = self._begin_agent(call_id, message)
        return thread

    def _begin_agent(self, call_id: str, message: Mapping[str, Any]) -> Thread:
        tool = self._tools.get(call_id)
        given = {} if tool is None else tool.input
        name = given.get("subagent_type") or message.get("subagent_type")
        definition = (getattr(self._options, "agents", None) or {}).get(name)
        thread = Thread(
            getattr(definition, "prompt", None),
            is_whole=getattr(self._options, "forward_subagent_text", False),
        )
        if message.get("type") != "user" and given.get("prompt"):
            thread.add({"role": "user", "content": given["prompt"]})
        around = self._main.context if tool is None else tool.context
        with attach(around):
            thread.scope = begin_agent(AgentRun(name=name, owner=thread))
        thread.context = around if thread.scope is None else thread.scope.context
        return thread

    def _end_agent(self, call_id: str) -> None:
        thread = self._agents.pop(call_id, None)
        if thread is not None:
            thread.end_turn()
            if thread.scope is not None:
                thread.scope.finish(None)


_READERS: Final = {
    "system": Conversation._read_system,
    "assistant": Conversation._read_assistant,
    "stream_event": Conversation._read_event,
    "user": Conversation._read_user,
    "result": Conversation._read_result,
    "conversation_reset": Conversation._read_reset,
    "error": Conversation._read_end,
    "end": Conversation._read_end,
}
"""Type of a message -> how to read it."""
_KEPT: Final = frozenset({"user", "conversation_reset"})
"""What counts between runs too: the conversation goes on."""


def _read_system_prompt(options: Any) -> str | None:
    """What the program gave as one; what the SDK's own presets say is not known."""
    given = getattr(options, "system_prompt", None)
    if isinstance(given, Mapping):
        return given.get("prompt") or given.get("append")
    return given


def _read_result_content(content: Any) -> Any:
    """Blocks that a model is told -> its text, where there is only that."""
    if isinstance(content, list) and len(content) == 1 and content[0].get("type") == "text":
        return content[0].get("text")
    return content


def _make_error(text: Any) -> Exception:
    """The stream tells only the text of a failure."""
    return sys.modules["claude_agent_sdk"].ClaudeSDKError(text)
