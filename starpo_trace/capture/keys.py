"""Keys of what Starpo keeps in an OpenTelemetry Context."""

from typing import Final

from opentelemetry.context import create_key

TRAJECTORY_KEY: Final = create_key("starpo-trajectory")
"""The run in progress."""
AROUND_KEY: Final = create_key("starpo-around")
"""The Context that the run in progress was begun in."""
INHERITED_KEY: Final = create_key("starpo-inherited")
"""In a thread that a run started: the span it was started in."""
AGENT_KEY: Final = create_key("starpo-agent")
"""The framework's agent that runs."""
TOOL_KEY: Final = create_key("starpo-tool")
"""Name and call id of the framework's tool that runs."""
LAYER_KEY: Final = create_key("starpo-layer")
"""The span of ours that is current, and the one around it that is not ours."""
CALL_KEY: Final = create_key("starpo-llm-call")
"""The model call in progress."""
