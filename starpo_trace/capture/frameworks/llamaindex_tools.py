"""LlamaIndex -> tools that agents and programs run, and retrievals.

The method that runs an agent's tool is not told its call's id; the step around it is, and keeps it
in the Context.
"""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from starpo_trace.capture.agents import Scope, ToolRun, begin_tool
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.scopes import find_homes, wrap_scope

TESTED: Final = {"llama-index-core": ">=0.14.10,<0.15"}
CALL_KEY: Final = otel_context.create_key("starpo-llamaindex-call")
"""Id of the tool call that a step is for."""


def apply(patches: PatchSet, module: ModuleType) -> None:
    """Patch a module of `llama_index.core`, once it has been imported."""
    if module.__name__ == "llama_index.core.base.base_retriever":
        wrap_scope(patches, module.BaseRetriever, "retrieve", _open_retriever, _read_nodes)
        wrap_scope(patches, module.BaseRetriever, "aretrieve", _open_retriever, _read_nodes)
        return
    for owner in (module.FunctionTool, module.QueryEngineTool, module.RetrieverTool):
        wrap_scope(patches, owner, "call", _open_tool)
        wrap_scope(patches, owner, "acall", _open_tool)
    calling = sys.modules["llama_index.core.tools.calling"]
    for name in ("call_tool_with_selection", "acall_tool_with_selection"):
        homes = find_homes(getattr(calling, name), name, calling)
        wrap_scope(patches, homes, name, _open_selection)


class _ToolScope:
    """A tool that runs: its output says whether it failed, and it may wait for an event."""

    def __init__(self, scope: Scope) -> None:
        self.context = scope.context
        self._scope = scope

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it; `result` is a `ToolOutput`."""
        if type(error).__name__ == "WaitingForEvent":
            error = None  # the step runs again when the event is there
        elif getattr(result, "is_error", False):
            error = result.exception or RuntimeError(result.content)
        self._scope.finish(error, getattr(result, "content", result))


def open_agent_tool(
    _workflow: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Scope | None:
    """A tool that an agent runs, in the step for its call."""
    tool = args[1] if len(args) > 1 else kwargs["tool"]
    given = args[2] if len(args) > 2 else kwargs["tool_input"]
    call_id: Any = otel_context.get_value(CALL_KEY)
    return _begin_tool(ToolRun(name=tool.metadata.name, arguments=given, call_id=call_id))


def _open_selection(_home: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    call = args[0] if args else kwargs["tool_call"]
    return _begin_tool(
        ToolRun(name=call.tool_name, arguments=call.tool_kwargs, call_id=call.tool_id)
    )


def _open_tool(tool: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scope | None:
    hidden = getattr(tool, "ctx_param_name", None)
    given: Any = {name: value for name, value in kwargs.items() if name != hidden}
    if args:
        given = args[0] if len(args) == 1 and not given else [*args, given]
    return _begin_tool(ToolRun(name=tool.metadata.name, arguments=given))


def _begin_tool(tool: ToolRun) -> Scope | None:
    scope = begin_tool(tool)
    return None if scope is None else _ToolScope(scope)


def _open_retriever(
    retriever: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Scope | None:
    query = args[0] if args else kwargs["str_or_query_bundle"]
    query = getattr(query, "query_str", query)
    return begin_tool(ToolRun(name=type(retriever).__name__, arguments=query, kind="retriever"))


def _read_nodes(nodes: Any) -> Any:
    """What was found, without its vectors."""
    return [
        {
            "id": each.node.node_id,
            "score": each.score,
            "text": each.node.get_content(),
            "metadata": each.node.metadata,
        }
        for each in nodes
    ]
