"""CrewAI -> tools that ran, and what was looked up.

The functions that answer a tool call know its id and what the model is told, but also answer calls
of tools that do not run (unknown, cached, refused by a hook); a tool runs in one of two methods
below them, which know what it raised. A step begins in the latter and ends in the former.
"""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from starpo_trace.capture.agents import Scope, ToolRun, begin_tool
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import wrap_scope
from starpo_trace.capture.runtime import get_runtime

_CALL_KEY: Final = otel_context.create_key("starpo-crewai-tool-call")


def patch_package(patches: PatchSet) -> None:
    """Patch what runs a tool, and what looks something up."""
    tools = sys.modules["crewai.tools.base_tool"]
    for owner in (tools.BaseTool, tools.Tool):
        if "run" in vars(owner):
            wrap_scope(patches, owner, "run", _open_attempt)
    structured = sys.modules["crewai.tools.structured_tool"].CrewStructuredTool
    wrap_scope(patches, structured, "invoke", _open_attempt)
    executor = sys.modules.get("crewai.agents.agent_executor")
    if executor is not None:
        name = "_execute_single_native_tool_call"
        wrap_scope(patches, executor.AgentExecutor, name, _open_call, _read_told)
    knowledge = sys.modules["crewai.knowledge.knowledge"].Knowledge
    wrap_scope(patches, knowledge, "query", _open_query)
    memory = sys.modules.get("crewai.memory.unified_memory")
    if memory is not None:
        wrap_scope(patches, knowledge, "aquery", _open_query)
        wrap_scope(patches, memory.Memory, "recall", _open_recall, _read_matches)


def patch_loop(patches: PatchSet, module: ModuleType) -> None:
    """Patch what a module with an agent's loop answers tool calls with."""
    wrap_scope(patches, [module], "execute_tool_and_check_finality", _open_text_call, _read_told)
    if module.__name__ == "crewai.agents.step_executor":
        name = "execute_single_native_tool_call"
        wrap_scope(patches, [module], name, _open_call, _read_told)


class _Call:
    """A tool call that is answered: a step, if its tool runs."""

    def __init__(self, tool: ToolRun) -> None:
        self.context = otel_context.set_value(_CALL_KEY, self)
        self.error: BaseException | None = None
        self._tool = tool
        self._scope: Scope | None = None

    def begin(self) -> Scope | None:
        """The step, which the first attempt begins."""
        if self._scope is None:
            self._scope = begin_tool(self._tool)
        return self._scope

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End the step, with what the last attempt raised and what the model is told."""
        if self._scope is not None:
            self._scope.finish(error or self.error, result)


class _Attempt:
    """A tool that runs; CrewAI tries it again where it raised."""

    def __init__(self, call: _Call, step: Scope) -> None:
        self.context = otel_context.set_value(_CALL_KEY, None, step.context)
        self._call = call

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Note what it raised."""
        del result
        self._call.error = error


def _open_call(_owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    if get_runtime() is None:
        return None
    read = sys.modules["crewai.utilities.agent_utils"].extract_tool_call_info
    read_call = read(args[0] if args else kwargs["tool_call"])
    if read_call is None:
        return None
    call_id, name, arguments = read_call
    return _Call(ToolRun(name=name, arguments=arguments, call_id=call_id))


def _open_text_call(_owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    """A call that the model wrote into its answer; it has no id."""
    if get_runtime() is None:
        return None
    action = args[0] if args else kwargs["agent_action"]
    return _Call(ToolRun(name=action.tool, arguments=action.tool_input))


def _open_attempt(_tool: Any, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> Scope | None:
    call = otel_context.get_value(_CALL_KEY)
    step = call.begin() if isinstance(call, _Call) else None
    return _Attempt(call, step) if isinstance(call, _Call) and step is not None else None


def _read_told(result: Any) -> Any:
    return result["result"] if isinstance(result, dict) else result.result


def _open_query(_knowledge: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    texts = args[0] if args else kwargs["query"]
    return begin_tool(ToolRun(name="knowledge", arguments="\n".join(texts), kind="retriever"))


def _open_recall(_memory: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    text = args[0] if args else kwargs["query"]
    return begin_tool(ToolRun(name="memory", arguments=text, kind="retriever"))


def _read_matches(matches: Any) -> list[str]:
    return [match.format() for match in matches]
