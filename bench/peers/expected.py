"""What the scripted server says and the scripted agent sends: the facts that spans should hold."""

ANSWER = "The lamp above the door is lit."
REASONING = "First I look at the lamp, then I decide about the door."
ENCRYPTED = "gAAAAABencrypted-reasoning"
PROMPT_IDS = [101, 2009, 2003, 1037, 102]
RESPONSE_IDS = [3001, 3002, 3003, 3004, 3005, 3006]
LOGPROBS = [-0.125, -0.25, -0.375, -0.5, -0.625, -0.75]
TOOL_CALLS = [
    ("call_a", "look_up", '{"city":  "Paris", "days": 1.0}'),
    ("call_b", "book", '{"seat": "4A",\n "price": 1e2}'),
]
"""Id, name and arguments, spaced as no JSON writer would."""
CACHED_TOKENS, REASONING_TOKENS = 64, 12
USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 38,
    "total_tokens": 158,
    "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
    "completion_tokens_details": {"reasoning_tokens": REASONING_TOKENS},
}
SYSTEM_PROMPT = "You are the keeper of the lamp."
PARAMETER_DESCRIPTION = "name of the city to look up"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Tool {name}",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": PARAMETER_DESCRIPTION}},
            },
        },
    }
    for name in ("look_up", "book")
]
NUM_LONG_MESSAGES = 200


def build_long_history() -> list[dict]:
    """A system prompt and 199 messages, each with a text of its own."""
    history = [{"role": "system", "content": SYSTEM_PROMPT}]
    for number in range(1, NUM_LONG_MESSAGES):
        role = "user" if number % 2 else "assistant"
        history.append({"role": role, "content": f"message number {number}."})
    return history
