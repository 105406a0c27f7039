"""An ordinary tool-calling agent, on the OpenAI SDK, that crosses frozen lakes.

Starpo needs one line of it, marked below. `tasks` and `play` are what `starpo-train evaluate`
calls; an agent in production would be called by its own service instead.
"""

import json
from typing import Any

import environment
import openai

import starpo_trace

starpo_trace.instrument()  # the one line

SYSTEM_PROMPT = "Cross the frozen lake to the goal G. Avoid the holes H."
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "move",
            "description": "Take one step.",
            "parameters": {
                "type": "object",
                "properties": {
                    "direction": {"type": "string", "enum": list(environment.OFFSETS)},
                },
                "required": ["direction"],
            },
        },
    }
]
MAX_ANSWER_TOKENS = 96


def tasks(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Maps of a split; a task's id is its map, its cohort says how many holes it has."""
    return [
        {
            "id": "-".join(lake_map),
            "cohort": "few-holes" if "".join(lake_map).count("H") <= 4 else "many-holes",
            "map": list(lake_map),
        }
        for lake_map in environment.generate_maps(split, count, seed)
    ]


def play(client: openai.OpenAI, model: str, task: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run on one map -> its reward and how it ended."""
    lake = environment.FrozenLake(tuple(task["map"]))
    messages: list[Any] = begin_messages(lake, task["map"])
    for turn in range(environment.MAX_MOVES):
        answer = client.chat.completions.create(
            model=model,
            messages=messages,
            tools=TOOLS,
            temperature=1.0,
            max_tokens=MAX_ANSWER_TOKENS,
            seed=(seed + turn) % 2**31,
            logprobs=True,
            extra_body={"return_token_ids": True},
        )
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:  # nobody to talk to: an answer without a move ends the run
            return {"reward": 0.0, "end": "terminated"}
        for call in message.tool_calls:
            content, outcome = run_tool(lake, call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
            if outcome is not None and outcome.end is not None:
                starpo_trace.observe(messages)  # the last result, which no later call would show
                return {"reward": outcome.reward, "end": outcome.end}
        starpo_trace.state({"row": lake.row, "column": lake.column}, name="lake")
    return {"reward": 0.0, "end": "truncated"}


def begin_messages(lake: environment.FrozenLake, lake_map: list[str]) -> list[dict[str, Any]]:
    """The messages before the first move."""
    return [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": "\n".join([*map(" ".join, lake_map), lake.observe()])},
    ]


def run_tool(
    lake: environment.FrozenLake, name: str, arguments: str
) -> tuple[str, environment.Outcome | None]:
    """One tool call -> what the model reads, and the outcome when a move was made."""
    if name != "move":
        return f"error: there is no tool {name!r}, only move(direction)", None
    try:
        outcome = lake.move(json.loads(arguments)["direction"])
    except (ValueError, KeyError, TypeError) as error:  # malformed JSON, no or wrong direction
        return f"error: {error}", None
    return outcome.observation, outcome
