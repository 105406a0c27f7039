"""For tests of agents: scripted model servers, and the recorded spans in memory.

docs/testing.md shows them at work; under pytest the fixture `starpo_spans` needs no import.
"""

from starpo_trace.testing.memory import MemoryStore, ToolRun, record_spans
from starpo_trace.testing.scripted import (
    Reply,
    Script,
    ScriptedServer,
    ToolCall,
    build_chunks,
    build_completion,
)
from starpo_trace.testing.tree import render_tree

__all__ = [
    "MemoryStore",
    "Reply",
    "Script",
    "ScriptedServer",
    "ToolCall",
    "ToolRun",
    "build_chunks",
    "build_completion",
    "record_spans",
    "render_tree",
]
