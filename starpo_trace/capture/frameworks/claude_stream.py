"""Messages of the Claude Agent SDK's stream -> turns, tools and sub-agents of a run.

Models are called by the SDK's program, which is another process; what is recorded of a call is what
the stream tells of it. An answer comes as one message per block, under one id, and is over when
something else follows; its tools may begin before that.
"""

import asyncio
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from starpo_trace import semconv
from starpo_trace.capture.agents import AgentRun, Scope, ToolRun, begin_agent, begin_tool
from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.episode import Trajectory, current_trajectory
from starpo_trace.capture.exchange import LLMRequest, LLMResponse, StreamOutcome
from starpo_trace.capture.invocation import Call, begin_call
from starpo_trace.capture.keys import TRAJECTORY_KEY
from starpo_trace.capture.outcome import redact_text
from starpo_trace.capture.patches.anthropic_events import MessageEvents
from starpo_trace.capture.patches.anthropic_messages import read_message, read_messages_response
from starpo_trace.capture.steps import state
from starpo_trace.messages import Message, dump_json

_ANSWER_FIELDS: Final = ("id", "type", "role", "model", "stop_reason")
_LIMITS: Final = {"error_max_turns", "error_max_budget_usd"}
_NO_STATE: Final = {"type", "subtype", "uuid", "session_id"}
_RESULT_STATE: Final = ("num_turns", "total_cost_usd", "usage", "modelUsage", "permission_denials")


class _Turn:
    """An answer of a model, as far as it came."""

    def __init__(self, answer: Mapping[str, Any], call: Call | None, *, is_stream: bool) -> None:
        self.id = answer.get("id")
        self.call = call
        self.events = MessageEvents() if is_stream else None
        """The same answer in pieces, where the program asked for them."""
        self.blocks: list[Any] = []
        self.ended_ns = 0
        self.is_aborted = False
        self._top = {name: answer[name] for name in _ANSWER_FIELDS if name in answer}
        self._usage = dict(answer.get("usage") or {})
        self._usage.pop("output_tokens", None)  # counted when the answer began

    def learn_end(self, result: Mapping[str, Any], *, is_only: bool) -> None:
        """Take from the run's result what it tells of the last answer, or of the only one."""
        self._top["stop_reason"] = result.get("stop_reason")
        output_tokens = (result.get("usage") or {}).get("output_tokens")
        if is_only and output_tokens:
            self._usage["output_tokens"] = output_tokens

    def read(self) -> LLMResponse:
        """What was answered."""
        if self.events is not None:
            response = self.events.build_response()
        else:
            top = {**self._top, "content": self.blocks, "usage": self._usage}
            response = read_messages_response(top)
        response.ended_ns = self.ended_ns or None
        if not any(message["parts"] for message in response.messages):
            response.messages = ()
        return response


class _Thread:
    """One agent: its conversation so far, and the answer that comes."""

    def __init__(self, system: str | None, *, is_whole: bool) -> None:
        self.context: Context | None = None
        self.scope: Scope | None = None
        """Of a sub-agent."""
        self.turn: _Turn | None = None
        self.is_resumed = False
        """Whether its conversation began before what is known."""
        self.num_turns = 0
        self._is_whole = is_whole
        """Whether every block of its answers is in the stream."""
        self._system = system
        self._messages: list[Message] = []
        self._pending: list[Message] = []
        """What came while an answer was not over."""
        self._latest_ns = time.time_ns()
        self.forget()

    def forget(self) -> None:
        """Begin the conversation anew."""
        self._messages = read_message({"role": "system", "content": self._system or ""})
        if not self._system:
            self._messages = []

    def add(self, message: Mapping[str, Any]) -> None:
        """Go on with a message to the model."""
        target = self._messages if self.turn is None else self._pending
        target += read_message(message)
        self._latest_ns = time.time_ns()

    def open_turn(
        self, answer: Mapping[str, Any], session_id: str | None, *, is_stream: bool = False
    ) -> _Turn:
        """The turn of an answer, begun if it is another one than before."""
        if self.turn is None or self.turn.id != answer.get("id"):
            self.end_turn()
            request = LLMRequest(
                provider="anthropic",
                model=str(answer.get("model", "")),
                messages=list(self._messages),
                is_stream=is_stream,
                is_partial=True,
                conversation_id=session_id if self.is_resumed else None,
                is_rebased=True,
                started_ns=self._latest_ns,
            )
            with attach(self.context):
                call = begin_call(lambda: request)
            self.turn = _Turn(answer, call, is_stream=is_stream)
            self.num_turns += 1
        self.turn.ended_ns = self._latest_ns = time.time_ns()
        return self.turn

    def end_turn(self, *, is_left: bool = False) -> None:
        """The answer is over; or left, and nobody knows whether there would have been more."""
        turn, self.turn = self.turn, None
        if turn is None:
            return
        response = turn.read()
        outcome: StreamOutcome | None = None if self._is_whole else "dropped"
        if turn.is_aborted or (is_left and not (self._pending or response.finish_reasons)):
            outcome = "cancelled"
        elif turn.events is not None:
            outcome = "exhausted"
        if turn.call is not None:
            turn.call.finish(response, outcome=outcome)
        parts = [part for message in response.messages for part in message["parts"]]
        if parts:
            self._messages.append({"role": "assistant", "parts": parts})
        self._messages += self._pending
        self._pending = []


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
        self._run: Scope | None = None
        self._is_outermost = False
        self._result: Mapping[str, Any] | None = None
        self._main = _Thread(_read_system_prompt(options), is_whole=True)
        self._main.is_resumed = bool(
            self._session_id or getattr(options, "continue_conversation", False)
        )
        self._agents: dict[str, _Thread] = {}
        """Sub-agents, by the tool call that asked for them."""
        self._tools: dict[str, _Tool] = {}
        self._tasks: dict[str, str | None] = {}
        """What goes on in the background: id of a task -> the tool call that began it."""
        self._state: dict[str, Any] = {}

    def begin_run(self) -> Context | None:
        """Begin a run, unless one goes on; the Context for it."""
        if self._run is None:
            is_outermost = current_trajectory() is None
            agent = AgentRun(name="claude", owner=self, conversation_id=self._session_id)
            self._run = begin_agent(agent)
            self._is_outermost, self._result = is_outermost, None
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

    def _judge_end(self, run: Scope, error: BaseException | None) -> BaseException | None:
        result = self._result
        if result is None:
            return error or asyncio.CancelledError("left before its result")
        reason = str(result.get("terminal_reason") or "")
        if result.get("subtype") in _LIMITS:
            trajectory = otel_context.get_value(TRAJECTORY_KEY, run.context)
            if self._is_outermost and isinstance(trajectory, Trajectory):
                trajectory.end("truncated", reason=str(result["subtype"]).removeprefix("error_"))
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

    def _note_failure(self, thread: _Thread, message: Mapping[str, Any]) -> None:
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

    def _find_thread(self, message: Mapping[str, Any]) -> _Thread:
        call_id = message.get("parent_tool_use_id")
        if call_id is None or self._run is None:
            return self._main
        thread = self._agents.get(call_id)
        if thread is None:
            thread = self._agents[call_id] = self._begin_agent(call_id, message)
        return thread

    def _begin_agent(self, call_id: str, message: Mapping[str, Any]) -> _Thread:
        tool = self._tools.get(call_id)
        given = {} if tool is None else tool.input
        name = given.get("subagent_type") or message.get("subagent_type")
        definition = (getattr(self._options, "agents", None) or {}).get(name)
        thread = _Thread(
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


@contextmanager
def attach(context: Context | None) -> Iterator[None]:
    """Make a Context current in a block, if there is one."""
    attachment = None if context is None else Attachment(context)
    try:
        yield
    finally:
        if attachment is not None:
            attachment.detach()


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
