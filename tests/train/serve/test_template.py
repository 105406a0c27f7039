"""Messages -> prompts, with templates of every ability."""

import tarfile
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from starpo_train.errors import ModelError
from starpo_train.serve.template import ChatRenderer, TemplateError

DATA = Path(__file__).parents[4] / "shared" / "data"
TOOLS = [
    {"type": "function", "function": {"name": "move", "parameters": {"type": "object"}}},
]
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "go"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "move", "arguments": '{"to":  "up"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "moved"},
]
CALL = '<tool_call>{"name": "move", "arguments": {"to":  "up"}}</tool_call>'


class TemplateTokenizer:
    """A real tokenizer class with the template under test and one id per character."""

    def __init__(self, template: str | None) -> None:
        self.chat_template = template

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return PreTrainedTokenizerFast.apply_chat_template(self, messages, **options)  # type: ignore[arg-type]

    def get_chat_template(self, *_: Any, **__: Any) -> str | None:
        return self.chat_template

    special_tokens_map: dict[str, str] = {}  # noqa: RUF012

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(character) for character in text]


def render(template: str, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
    renderer = ChatRenderer(TemplateTokenizer(template), name="m")
    return renderer.render_chat(messages, tools).text


PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


def test_tools_become_text_where_the_template_has_none():
    """The system message says which tools there are and how to call one."""
    text = render(PLAIN, [{"role": "system", "content": "Be brief."}, *HISTORY[:1]], TOOLS)
    assert text == (
        "[system] Be brief.\n\nYou may call these tools:\n"
        '{"name": "move", "parameters": {"type": "object"}}\n'
        'To call one, write <tool_call>{"name": "...", "arguments": {...}}</tool_call>\n'
        "[user] go\n"
    )


def test_a_system_message_is_added_for_the_tools():
    """When the client sends none."""
    assert render(PLAIN, HISTORY[:1], TOOLS).startswith("[system] You may call these tools:")


def test_calls_become_text_where_the_template_has_none():
    """The assistant's message is written as the model wrote it, reasoning included."""
    expected = f"[user] go\n[assistant] <think>hm</think>{CALL}\n[tool] moved\n"
    assert expected == render(PLAIN, HISTORY)


def test_tool_results_become_user_messages_where_the_template_refuses_them():
    """Gemma's template raises on every role but user and assistant."""
    strict = (
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
        "{{ raise_exception('unknown role') }}{% endif %}[{{ m.role }}] {{ m.content }}\n"
        "{% endfor %}"
    )
    assert render(strict, HISTORY).endswith("[user] <tool_response>moved</tool_response>\n")


def test_arguments_stay_verbatim_where_the_template_takes_strings():
    """Two spaces in the model's JSON are still two in the next prompt."""
    template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}({{ c.function.arguments }}){% endfor %}{{ '\\n' }}{% endfor %}"
    )
    assert render(template, HISTORY) == 'go\nmove({"to":  "up"})\nmoved\n'


def test_arguments_go_in_parsed_where_the_template_dumps_them():
    """A template with `tojson` would quote a string a second time."""
    template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}{{ '\\n' }}{% endfor %}"
    )
    assert render(template, HISTORY) == 'go\nmove({"to": "up"})\nmoved\n'


def test_content_stays_out_where_the_template_wants_none():
    """Some templates drop the calls of a message that has content, even an empty one."""
    template = (
        "{% for m in messages %}{% if m.content is undefined %}{% for c in m.tool_calls %}"
        "{{ c.function.name }}({{ c.function.arguments }}){% endfor %}{% else %}{{ m.content }}"
        "{% endif %}{{ '\\n' }}{% endfor %}"
    )
    assert render(template, HISTORY) == 'go\nmove({"to":  "up"})\nmoved\n'


def test_a_template_that_raises_is_the_requests_fault():
    """The template's own words are in the error."""
    template = "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}x"
    with pytest.raises(TemplateError, match="one at a time"):
        render(template, HISTORY)


def test_an_open_think_at_the_end_is_noticed():
    """The answer then begins inside the reasoning."""
    renderer = ChatRenderer(TemplateTokenizer("x<think>\n"), name="m")
    assert renderer.render_chat(HISTORY[:1], None).thinking


def test_no_template_is_a_model_error():
    """It says what is missing and what to do."""
    with pytest.raises(ModelError, match=r"'base' has no chat template.*chat_template\.jinja"):
        ChatRenderer(TemplateTokenizer(None), name="base")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "smollm2-135m-instruct"])
@pytest.mark.filterwarnings("ignore")
def test_real_templates_keep_the_call_verbatim(name: str, tmp_path: Path):
    """Tool name, arguments and result are in the prompt, whatever the template makes of them."""
    archive = DATA / f"tokenizer-{name}.tar.gz"
    if not archive.exists():
        pytest.skip(f"needs ../shared/data/{archive.name}")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = next(tmp_path.rglob("tokenizer.json")).parent
    renderer = ChatRenderer(AutoTokenizer.from_pretrained(folder), name=name)
    first = renderer.render_chat(HISTORY[:1], TOOLS)
    second = renderer.render_chat(HISTORY, TOOLS)
    assert '{"name": "move", "parameters"' in first.text.replace('"function": ', "")
    for expected in ("move", '{"to":  "up"}', "moved"):
        assert expected in second.text[len(first.text) - 20 :]
    assert second.text.startswith(first.text)
