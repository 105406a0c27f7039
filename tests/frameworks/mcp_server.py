"""A real MCP server, a process of its own: its tool asks a model and takes a step.

python mcp_server.py TRANSPORT PORT STORE MODEL_URL KIND TRACING
"""

import sys

import starpo_trace

TRANSPORT, PORT, STORE, MODEL_URL, KIND, TRACING = sys.argv[1:]
starpo_trace.instrument(store=STORE)
if TRACING == "elsewhere":  # the program's own telemetry, which Starpo does not write to
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())

from openai import OpenAI  # noqa: E402

try:
    from mcp.server.fastmcp import FastMCP
except ModuleNotFoundError:  # version 2
    from mcp.server.mcpserver import MCPServer as FastMCP
from mcp import types  # noqa: E402
from mcp.server.lowlevel import Server  # noqa: E402
from mcp.server.stdio import stdio_server  # noqa: E402

IS_OLD = hasattr(Server, "call_tool")


def ask(question: str) -> str:
    """Asks a model."""
    if question == "fail":
        raise RuntimeError("nobody to ask")
    client = OpenAI(base_url=MODEL_URL, api_key="none", max_retries=0)
    with starpo_trace.step("retriever", "shelf", arguments=question) as step:
        step.result("A7")
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="m", messages=messages).choices[0].message.content


def make_low_level():
    schema = {"type": "object", "properties": {"question": {"type": "string"}}}
    tool = types.Tool.model_validate({"name": "ask", "inputSchema": schema})
    if IS_OLD:
        server = Server("low")

        @server.list_tools()
        async def list_tools():
            return [tool]

        @server.call_tool()
        async def call_tool(_name, arguments):
            return [types.TextContent(type="text", text=ask(**arguments))]

        return server

    async def on_list_tools(_context, _params):
        return types.ListToolsResult(tools=[tool])

    async def on_call_tool(_context, params):
        text = ask(**params.arguments)
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)])

    return Server("low", on_list_tools=on_list_tools, on_call_tool=on_call_tool)


async def run_low_level():
    server = make_low_level()
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    if KIND == "low":
        import anyio

        anyio.run(run_low_level)
    elif TRANSPORT == "stdio":
        server = FastMCP("shop")
        server.add_tool(ask)
        server.run("stdio")
    else:
        port = {"host": "127.0.0.1", "port": int(PORT)}
        server = FastMCP("shop", **port) if IS_OLD else FastMCP("shop")
        server.add_tool(ask)
        server.run("streamable-http", **({} if IS_OLD else port))
