"""Stand-in for the Claude Agent SDK's program: its stream-json protocol, and real requests to the API.

What the bundled program was seen to write is written here in the same form and order. It adds
nothing to the prompts, so what is recorded can be compared with its requests to the letter.
"""

import json
import queue
import sys
import threading
import urllib.error
import urllib.request
import uuid
from os import environ

ARGUMENTS = sys.argv[1:]
SESSION = str(uuid.uuid4())
VERSION = "2.1.332"
"""The program that was seen to write so."""
USER = "user"


def get_option(name, default=None):
    for place, argument in enumerate(ARGUMENTS):
        if argument == name:
            return ARGUMENTS[place + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return default


IS_PARTIAL = "--include-partial-messages" in ARGUMENTS
MODEL = get_option("--model", "claude-x")
MAX_TURNS = int(get_option("--max-turns", "100"))
SERVERS = json.loads(get_option("--mcp-config", "{}")).get("mcpServers", {})
_writing = threading.Lock()
_prompts: "queue.Queue" = queue.Queue()
_answers: "queue.Queue" = queue.Queue()
_interrupted = threading.Event()
_settings = {"agents": json.loads(get_option("--agents", "{}")), "forward": False, "hooks": {}}


def write(**message):
    with _writing:
        sys.stdout.write(json.dumps({**message, "session_id": SESSION}) + "\n")
        sys.stdout.flush()


def read_input():
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "control_request":
            take_request(message)
        elif message["type"] == "control_response":
            _answers.put(message["response"])
        else:
            _prompts.put(message["message"])
    _prompts.put(None)


def take_request(message):
    request = message["request"]
    if request["subtype"] == "initialize":
        _settings["agents"].update(request.get("agents") or {})
        _settings["forward"] = request.get("forwardSubagentText", False)
        _settings["hooks"] = request.get("hooks") or {}
    if request["subtype"] == "interrupt":
        _interrupted.set()
    write(
        type="control_response",
        response={"subtype": "success", "request_id": message["request_id"], "response": {}},
    )


def ask_sdk(**request):
    write(type="control_request", request_id=str(uuid.uuid4()), request=request)
    answer = _answers.get()
    return answer["response"] if answer["subtype"] == "success" else {"error": answer["error"]}


def ask_mcp(server, method, params, number):
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    return ask_sdk(subtype="mcp_message", server_name=server, message=message)["mcp_response"]


def list_tools():
    tools = []
    for server in SERVERS:
        client = {"name": "stand-in", "version": "1"}
        started = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}
        ask_mcp(server, "initialize", started, 0)
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        ask_sdk(subtype="mcp_message", server_name=server, message=note)
        for tool in ask_mcp(server, "tools/list", {}, 1)["result"]["tools"]:
            name = f"mcp__{server}__{tool['name']}"
            tools.append({"name": name, "input_schema": tool["inputSchema"]})
    return tools


def stream_answer(system, messages, tools):
    body = {"model": MODEL, "max_tokens": 100, "stream": True, "messages": messages}
    body |= {"system": system} if system else {}
    body |= {"tools": tools} if tools else {}
    request = urllib.request.Request(
        f"{environ['ANTHROPIC_BASE_URL']}/v1/messages",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


class Agent:
    """The main agent, or one that a tool call began."""

    def __init__(self, system, tools, parent=None):
        self.system = system
        self.tools = tools
        self.parent = parent
        self.messages = []
        self.num_turns = 0
        self.usage = {"input_tokens": 0, "output_tokens": 0}

    def tell(self, kind, **fields):
        write(type=kind, parent_tool_use_id=self.parent, uuid=str(uuid.uuid4()), **fields)

    def run(self, content):
        """Answers until there is nothing to do -> stop reason."""
        self.messages.append({"role": USER, "content": content})
        self.num_turns, self.usage = 0, {"input_tokens": 0, "output_tokens": 0}
        while True:
            if self.num_turns == MAX_TURNS:
                return "max_turns"
            self.num_turns += 1
            blocks, stop_reason = self.take_turn()
            if _interrupted.is_set():
                note = [{"type": "text", "text": "[Request interrupted by user]"}]
                self.messages.append({"role": USER, "content": note})
                self.tell("user", message=self.messages[-1])
                return "aborted_streaming"
            if stop_reason != "tool_use":
                return stop_reason
            results = [run_tool(b) for b in blocks if b["type"] == "tool_use"]
            for result in results:
                self.tell("user", message={"role": USER, "content": [result]})
            self.messages.append({"role": USER, "content": results})

    def take_turn(self):
        blocks, top, stop_reason = [], {}, None
        for event in stream_answer(self.system, self.messages, self.tools):
            if IS_PARTIAL and self.parent is None:
                self.tell("stream_event", event=event)
            kind = event["type"]
            if kind == "message_start":
                top = event["message"]
            elif kind == "content_block_start":
                blocks.append({**event["content_block"], "input_text": ""})
            elif kind == "content_block_delta":
                add_delta(blocks[-1], event["delta"])
            elif kind == "content_block_stop":
                self.end_block(top, blocks[-1])
            elif kind == "message_delta":
                stop_reason = event["delta"]["stop_reason"]
                self.usage["input_tokens"] += top["usage"]["input_tokens"]
                self.usage["output_tokens"] += event["usage"]["output_tokens"]
            if _interrupted.is_set():
                if blocks and "input_text" in blocks[-1]:
                    self.end_block(top, blocks[-1], aborted=True)
                break
        self.messages.append({"role": "assistant", "content": blocks})
        return blocks, stop_reason

    def end_block(self, top, block, **fields):
        text = block.pop("input_text")
        if block["type"] == "tool_use":
            block["input"] = json.loads(text or "{}")
        if self.parent is None or _settings["forward"] or block["type"] == "tool_use":
            self.tell("assistant", message={**top, "content": [block]}, **fields)


def add_delta(block, delta):
    kind = delta["type"]
    if kind == "input_json_delta":
        block["input_text"] += delta["partial_json"]
    else:
        name = kind.removesuffix("_delta")
        block[name] = block.get(name, "") + delta[name]


def run_tool(block):
    for hooks in _settings["hooks"].get("PreToolUse", []):
        for hook in hooks["hookCallbackIds"]:
            given = {"hook_event_name": "PreToolUse", "tool_name": block["name"]}
            ask_sdk(subtype="hook_callback", callback_id=hook, input=given, tool_use_id=block["id"])
    result = {"type": "tool_result", "tool_use_id": block["id"]}
    if block["name"] in {"Task", "Agent"}:
        definition = _settings["agents"][block["input"]["subagent_type"]]
        agent = Agent(definition["prompt"], main.tools, block["id"])
        content = [{"type": "text", "text": block["input"]["prompt"]}]
        agent.tell("user", message={"role": USER, "content": content})
        agent.run(content)
        return result | {"content": agent.messages[-1]["content"]}
    _, server, name = block["name"].split("__")
    params = {"name": name, "arguments": block["input"]}
    params["_meta"] = {"claudecode/toolUseId": block["id"]}
    told = ask_mcp(server, "tools/call", params, 2)["result"]
    if told.get("isError") or told.get("is_error"):
        return result | {"content": told["content"][0]["text"], "is_error": True}
    return result | {"content": told["content"]}


def answer_prompt(message):
    names = [tool["name"] for tool in main.tools]
    session = {"model": MODEL, "tools": names, "permissionMode": "default"}
    write(type="system", subtype="init", claude_code_version=VERSION, **session)
    ended = {"subtype": "success", "is_error": False, "terminal_reason": "completed"}
    try:
        reason = main.run(message["content"])
    except urllib.error.HTTPError as error:
        text = f"API Error: {error.code} {error.read().decode()}"
        block = {"type": "text", "text": text}
        fields = {"role": "assistant", "stop_reason": "stop_sequence", "usage": {}}
        message = {"id": "synthetic", "model": "<synthetic>", "content": [block], **fields}
        main.tell("assistant", message=message, error="server_error")
        ended |= {"is_error": True, "terminal_reason": "api_error", "result": text}
    else:
        ended["stop_reason"] = reason
        if reason == "max_turns":
            ended |= {"is_error": True, "subtype": "error_max_turns", "terminal_reason": reason}
        if reason == "aborted_streaming":
            ended |= {"is_error": True, "terminal_reason": reason}
            ended |= {"subtype": "error_during_execution"}
            _interrupted.clear()
    ended |= {"num_turns": main.num_turns, "usage": main.usage, "total_cost_usd": 0.01}
    if ended["subtype"] == "success" and not ended["is_error"]:
        ended["result"] = "".join(b.get("text", "") for b in main.messages[-1]["content"])
    write(type="result", duration_ms=1, duration_api_ms=1, **ended)
    return not ended["is_error"]


main = Agent(get_option("--system-prompt") or None, [])
if "-v" in ARGUMENTS or "--version" in ARGUMENTS:
    sys.stdout.write(f"{VERSION} (stand-in)\n")
elif "--print" in ARGUMENTS:  # a prompt on the command line; nothing can be asked of the SDK
    sys.exit(0 if answer_prompt({"content": ARGUMENTS[-1]}) else 1)
else:
    threading.Thread(target=read_input, daemon=True).start()
    is_fine, is_listed = True, False
    while (prompt := _prompts.get()) is not None:
        if not is_listed:
            main.tools, is_listed = list_tools(), True
        is_fine = answer_prompt(prompt)
    sys.stdout.flush()
    sys.exit(0 if is_fine else 1)
