"""Modules of SDKs and frameworks to wait for -> the module of ours that patches them.

Adding a provider or a framework is adding its line: `capture/NAME.py` has `apply(patches, module)`,
called with each of these once it is imported, and `TESTED`, package -> versions (`>=2,<3 or >=1.4,<1.5`).
"""

from typing import Final

_CAPTURE: Final = "starpo_trace.capture"

TARGETS: Final[dict[str, tuple[str, ...]]] = {
    f"{_CAPTURE}.patches.threads": (
        "threading",
        "concurrent.futures.thread",
    ),
    f"{_CAPTURE}.patches.tracers": ("opentelemetry.sdk.trace",),
    f"{_CAPTURE}.patches.anthropic": ("anthropic._base_client",),
    f"{_CAPTURE}.patches.anthropic_tools": ("anthropic.lib.tools._beta_runner",),
    f"{_CAPTURE}.patches.google_genai": ("google.genai._api_client",),
    f"{_CAPTURE}.patches.google_genai_tools": ("google.genai._extra_utils",),
    f"{_CAPTURE}.patches.openai": ("openai._base_client",),
    f"{_CAPTURE}.patches.bedrock": ("botocore.client",),
    f"{_CAPTURE}.patches.litellm": (
        "litellm",
        "litellm.router_rust.core",
    ),
    f"{_CAPTURE}.patches.ollama": ("ollama._client",),
    f"{_CAPTURE}.patches.lm15": (
        "dspy._vendor.lm15.transports._sync",
        "dspy._vendor.lm15.transports._async",
    ),
    f"{_CAPTURE}.patches.mistral": (
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
    f"{_CAPTURE}.frameworks.ag2": (
        "ag2.agent",
        "ag2.middleware.builtin.telemetry",
    ),
    f"{_CAPTURE}.frameworks.agent_framework": (
        "agent_framework._agents",
        "agent_framework._workflows._workflow",
    ),
    f"{_CAPTURE}.frameworks.agno": (
        "agno.agent._run",
        "agno.team._run",
        "agno.tools.function",
    ),
    f"{_CAPTURE}.frameworks.autogen": (
        "autogen_agentchat.agents",
        "autogen_core.tools",
    ),
    f"{_CAPTURE}.frameworks.autogen_teams": (
        "autogen_agentchat.teams",
        "autogen_core._single_threaded_agent_runtime",
    ),
    f"{_CAPTURE}.frameworks.claude_agent_sdk": ("claude_agent_sdk",),
    f"{_CAPTURE}.frameworks.crewai": (
        "crewai",
        "crewai.lite_agent",
        "crewai.agents.agent_executor",
        "crewai.agents.crew_agent_executor",
        "crewai.agents.step_executor",
    ),
    f"{_CAPTURE}.frameworks.dspy": ("dspy",),
    f"{_CAPTURE}.frameworks.google_adk": (
        "google.adk.runners",
        "google.adk.agents.base_agent",
        "google.adk.flows.llm_flows.functions",
        "google.adk.flows.llm_flows.tools._caller",
        "google.adk.sessions.base_session_service",
    ),
    f"{_CAPTURE}.frameworks.haystack": ("haystack.components.agents.agent",),
    f"{_CAPTURE}.frameworks.langgraph": (
        "langchain_core.retrievers",
        "langchain_core.tools.base",
        "langgraph.pregel.main",
    ),
    f"{_CAPTURE}.frameworks.llamaindex": (
        "workflows.runtime.control_loop",
        "llama_index.core.agent.workflow",
    ),
    f"{_CAPTURE}.frameworks.llamaindex_tools": (
        "llama_index.core.tools",
        "llama_index.core.base.base_retriever",
    ),
    f"{_CAPTURE}.frameworks.mcp": (
        "mcp.client.client",
        "mcp.client.session",
        "mcp.server._otel",
        "mcp.server.lowlevel.server",
        "mcp.server.runner",
        "mcp.shared.jsonrpc_dispatcher",
        "mcp.shared.session",
    ),
    f"{_CAPTURE}.frameworks.openai_agents": ("agents.run",),
    f"{_CAPTURE}.frameworks.pydantic_ai": ("pydantic_ai.agent",),
    f"{_CAPTURE}.frameworks.semantic_kernel": (
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
    f"{_CAPTURE}.frameworks.smolagents": ("smolagents.agents",),
    f"{_CAPTURE}.frameworks.strands": (
        "strands.agent.agent",
        "strands.multiagent.graph",
        "strands.multiagent.swarm",
    ),
}
