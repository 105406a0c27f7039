"""Installed SDKs -> patched SDKs, and back.

One small module per SDK, applied when the SDK is imported, at once if it already is. Adding a
provider is adding its module to `_PATCHES`.
"""

import importlib
import sys
from importlib import metadata
from typing import Any, Final

import wrapt

from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.guard import Guard, warn_once

_PATCHES: Final = {
    "threading": "starpo_trace.capture.patches.threads",
    "concurrent.futures.thread": "starpo_trace.capture.patches.threads",
    "opentelemetry.sdk.trace": "starpo_trace.capture.patches.tracers",
    "anthropic._base_client": "starpo_trace.capture.patches.anthropic",
    "anthropic.lib.tools._beta_runner": "starpo_trace.capture.patches.anthropic_tools",
    "google.genai._api_client": "starpo_trace.capture.patches.google_genai",
    "google.genai._extra_utils": "starpo_trace.capture.patches.google_genai_tools",
    "openai._base_client": "starpo_trace.capture.patches.openai",
    "botocore.client": "starpo_trace.capture.patches.bedrock",
    "litellm": "starpo_trace.capture.patches.litellm",
    "litellm.router_rust.core": "starpo_trace.capture.patches.litellm",
    "ollama._client": "starpo_trace.capture.patches.ollama",
    "dspy._vendor.lm15.transports._sync": "starpo_trace.capture.patches.lm15",
    "dspy._vendor.lm15.transports._async": "starpo_trace.capture.patches.lm15",
    "agents.run": "starpo_trace.capture.frameworks.openai_agents",
    "smolagents.agents": "starpo_trace.capture.frameworks.smolagents",
    "agno.agent._run": "starpo_trace.capture.frameworks.agno",
    "agno.team._run": "starpo_trace.capture.frameworks.agno",
    "agno.tools.function": "starpo_trace.capture.frameworks.agno",
    "haystack.components.agents.agent": "starpo_trace.capture.frameworks.haystack",
    "agent_framework._agents": "starpo_trace.capture.frameworks.agent_framework",
    "agent_framework._workflows._workflow": "starpo_trace.capture.frameworks.agent_framework",
    "ag2.agent": "starpo_trace.capture.frameworks.ag2",
    "ag2.middleware.builtin.telemetry": "starpo_trace.capture.frameworks.ag2",
    "autogen_agentchat.agents": "starpo_trace.capture.frameworks.autogen",
    "autogen_agentchat.teams": "starpo_trace.capture.frameworks.autogen_teams",
    "autogen_core._single_threaded_agent_runtime": "starpo_trace.capture.frameworks.autogen_teams",
    "autogen_core.tools": "starpo_trace.capture.frameworks.autogen",
    "claude_agent_sdk": "starpo_trace.capture.frameworks.claude_agent_sdk",
    "langchain_core.retrievers": "starpo_trace.capture.frameworks.langgraph",
    "langchain_core.tools.base": "starpo_trace.capture.frameworks.langgraph",
    "langgraph.pregel.main": "starpo_trace.capture.frameworks.langgraph",
    "crewai": "starpo_trace.capture.frameworks.crewai",
    "crewai.lite_agent": "starpo_trace.capture.frameworks.crewai",
    "crewai.agents.agent_executor": "starpo_trace.capture.frameworks.crewai",
    "crewai.agents.crew_agent_executor": "starpo_trace.capture.frameworks.crewai",
    "crewai.agents.step_executor": "starpo_trace.capture.frameworks.crewai",
    "pydantic_ai.agent": "starpo_trace.capture.frameworks.pydantic_ai",
    "strands.agent.agent": "starpo_trace.capture.frameworks.strands",
    "strands.multiagent.graph": "starpo_trace.capture.frameworks.strands",
    "strands.multiagent.swarm": "starpo_trace.capture.frameworks.strands",
    **dict.fromkeys(
        (
            "semantic_kernel.kernel",
            "semantic_kernel.functions.kernel_function",
            "semantic_kernel.connectors.ai.chat_completion_client_base",
            "semantic_kernel.agents.chat_completion.chat_completion_agent",
            "semantic_kernel.agents.open_ai.openai_responses_agent",
            "semantic_kernel.agents.group_chat.agent_group_chat",
            "semantic_kernel.agents.orchestration.orchestration_base",
            "semantic_kernel.agents.orchestration.group_chat",
            "semantic_kernel.agents.runtime.in_process.in_process_runtime",
        ),
        "starpo_trace.capture.frameworks.semantic_kernel",
    ),
    "dspy": "starpo_trace.capture.frameworks.dspy",
    "workflows.runtime.control_loop": "starpo_trace.capture.frameworks.llamaindex",
    "llama_index.core.agent.workflow": "starpo_trace.capture.frameworks.llamaindex",
    "llama_index.core.tools": "starpo_trace.capture.frameworks.llamaindex_tools",
    "llama_index.core.base.base_retriever": "starpo_trace.capture.frameworks.llamaindex_tools",
    **dict.fromkeys(
        (
            "mcp.client.client",
            "mcp.client.session",
            "mcp.server._otel",
            "mcp.server.lowlevel.server",
            "mcp.server.runner",
            "mcp.shared.jsonrpc_dispatcher",
            "mcp.shared.session",
        ),
        "starpo_trace.capture.frameworks.mcp",
    ),
    **dict.fromkeys(
        (
            "google.adk.runners",
            "google.adk.agents.base_agent",
            "google.adk.flows.llm_flows.functions",
            "google.adk.flows.llm_flows.tools._caller",
            "google.adk.sessions.base_session_service",
        ),
        "starpo_trace.capture.frameworks.google_adk",
    ),
    **dict.fromkeys(
        (
            "mistralai.client.basesdk",
            "mistralai.client.chat",
            "mistralai.client.agents",
            "mistralai.client.fim",
            "mistralai.client.embeddings",
            "mistralai.client._hooks.tracing",
            "mistralai.azure.client.basesdk",
            "mistralai.azure.client.chat",
            "mistralai.gcp.client.basesdk",
            "mistralai.gcp.client.chat",
            "mistralai.gcp.client.fim",
        ),
        "starpo_trace.capture.patches.mistral",
    ),
}
"""Module to wait for -> module with `apply(patches, module)` and `TESTED`, package -> versions."""

_applied = PatchSet()
_active_targets: set[str] = set()
_hooked_targets: set[str] = set()
_is_active = False


def apply_patches() -> None:
    """Patch every known SDK, now or when it is imported."""
    global _is_active  # noqa: PLW0603 (import hooks cannot be removed, only switched)
    _is_active = True
    for target in _PATCHES:
        if target in sys.modules:
            _apply(target)
        if target not in _hooked_targets:
            _hooked_targets.add(target)
            wrapt.register_post_import_hook(_on_import, target)


def list_patches() -> dict[str, list[str]]:
    """Modules that patch -> the modules that they wait for."""
    patches: dict[str, list[str]] = {}
    for target, patch in _PATCHES.items():
        patches.setdefault(patch, []).append(target)
    return patches


def remove_patches() -> None:
    """Put back every patched attribute."""
    global _is_active  # noqa: PLW0603
    _is_active = False
    _active_targets.clear()
    _applied.restore()


def _on_import(module: object) -> None:
    target = getattr(module, "__name__", "")
    if _is_active and target in _PATCHES:
        _apply(target)


def _apply(target: str) -> None:
    if target in _active_targets:
        return
    _active_targets.add(target)
    with Guard(f"patching {target}"):
        patch = importlib.import_module(_PATCHES[target])
        try:
            patch.apply(_applied, sys.modules[target])
        except AttributeError as error:
            warn_of_missing_seam(patch, target, error)


def warn_of_missing_seam(patch: Any, target: str, error: AttributeError) -> None:
    """Log, once, that an SDK of this version has not what a patch needs."""
    for package, tested in patch.TESTED.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "of unknown version"
        warn_once(
            f"missing seam {target}",
            "some calls through %s %s are not recorded: %s; tested with %s %s",
            package,
            version,
            error,
            package,
            tested,
        )
