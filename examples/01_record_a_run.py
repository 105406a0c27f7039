"""Record one run of an agent, export it, look at it.

    python examples/01_record_a_run.py

The model's HTTP API is a small scripted server, so the example runs anywhere; with your own agent
only the lines that begin with `starpo_trace` are new.
"""

import tempfile
from pathlib import Path

import openai

import starpo_trace
from starpo_trace.cli import main as trace_main
from starpo_trace.testing import Reply, ScriptedServer, ToolCall

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "stock",
            "description": "Units in the warehouse.",
            "parameters": {"type": "object", "properties": {"sku": {"type": "string"}}},
        },
    }
]
QUESTION = [{"role": "user", "content": "How many A7 are left?"}]


def agent(client: openai.OpenAI) -> str:
    """An ordinary tool loop; it knows nothing of Starpo."""
    messages = list(QUESTION)
    while True:
        answer = client.chat.completions.create(model="shop-7b", messages=messages, tools=TOOLS)
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            return message.content or ""
        for call in message.tool_calls:
            with starpo_trace.step("tool", call.function.name, call_id=call.id) as step:
                step.result("3")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "3"})


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="starpo-example-"))
    starpo_trace.instrument(store=folder / "traces")  # the one line

    ask = ToolCall(id="call_1", name="stock", arguments='{"sku": "A7"}')
    script = [
        Reply(reasoning_content="The warehouse knows.", tool_calls=[ask]),
        Reply(content="3 are left."),
    ]
    with (
        ScriptedServer(script) as server,
        openai.OpenAI(base_url=server.base_url, api_key="none") as client,
        starpo_trace.trajectory("shop", task_id="stock-of-A7", policy_id="shop-7b@1") as run,
    ):
        print("agent:", agent(client))
        starpo_trace.reward(1.0, name="solved", source="environment")
    starpo_trace.flush()

    # Later, elsewhere: a user was unhappy after all. Sent twice, it counts once.
    for _ in range(2):
        starpo_trace.reward(0.0, name="liked", source="user", trajectory_id=run.id)
    starpo_trace.flush()

    dataset = folder / "dataset"
    assert trace_main(["export", str(folder / "traces"), "-o", str(dataset)]) == 0
    assert trace_main(["show", str(dataset), "--trajectory", run.id]) == 0


if __name__ == "__main__":
    main()
