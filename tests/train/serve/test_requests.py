"""Requests that are refused, with the reason."""

from typing import Any

import pytest

from starpo_train.serve.requests import RequestError, parse_chat_request

GOOD: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_defaults():
    """A request with a model and messages alone samples at temperature 1 without limits."""
    request = parse_chat_request(GOOD)
    values = (request.temperature, request.top_p, request.max_tokens, request.seed, request.stop)
    assert values == (1.0, 1.0, None, None, ())


def test_max_completion_tokens_goes_before_max_tokens():
    """The newer name wins, as it does at OpenAI."""
    body = {**GOOD, "max_tokens": 5, "max_completion_tokens": 3}
    assert parse_chat_request(body).max_tokens == 3


def test_tool_choice_none_hides_the_tools():
    """The model is not shown tools it must not call."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert parse_chat_request({**GOOD, "tools": tools, "tool_choice": "none"}).tools is None


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"model": None}, "model", "model must be a string, got None"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": [{"role": "robot"}]}, "messages[0]", "role must be one of system"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0]",
            "holds a 'image_url' part; this server takes text only",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
                    }
                ]
            },
            "messages[0]",
            "arguments must be a JSON string",
        ),
        ({"temperature": -1}, "temperature", "from 0 up to 2, got -1"),
        ({"temperature": "hot"}, "temperature", "got 'hot'"),
        ({"top_p": 0}, "top_p", "above 0 up to 1, got 0"),
        ({"max_tokens": 0}, "max_tokens", "at least 1, got 0"),
        ({"max_tokens": True}, "max_tokens", "got True"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20, got 21"),
        ({"stop": [""]}, "stop", "non-empty strings"),
        ({"stream": "yes"}, "stream", "must be true or false, got 'yes'"),
        ({"n": 2}, "n", "n=2 is not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "'required' is not supported"),
        ({"tools": [{"name": "f"}]}, "tools[0]", "must be"),
        ({"temprature": 1}, "temprature", "unknown parameter 'temprature'"),
    ],
)
def test_bad_values_are_refused(change: dict[str, Any], param: str, message: str):
    """The error names the parameter, its value and what is allowed."""
    with pytest.raises(RequestError) as caught:
        parse_chat_request({**GOOD, **change})
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in str(caught.value)
