"""Turns rendered by chat templates: what is trained, and everything a template does to it."""

import json
import tarfile
from pathlib import Path

import pytest

from starpo_train.chattemplate import ChatTemplate
from starpo_train.dataset import MessageNode, Trajectory, Turn
from starpo_train.errors import ModelError
from starpo_train.findings import FAULTS, LOSSES, NOTES
from starpo_train.render import TurnRenderer
from starpo_train.retokenize import Retokenizer
from starpo_train.tokens import tokenize_trajectory

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"

TURN = "<|im_start|>{{ m.role }}\n"
END = "<|im_end|>\n"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CALLS = (
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}:"
    "{{ c.function.arguments }}</call>{% endfor %}"
)
THOUGHT = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"


def template(body, *, before=TOOLS, after=ASK):
    return f"{before}{{% for m in messages %}}{TURN}{body}{END}{{% endfor %}}{after}"


WHOLE = template(f"{THOUGHT}{{{{ m.content }}}}{CALLS}")
"""Keeps everything."""

TOOL = json.dumps([{"name": "go", "description": "walk", "input_schema": {"type": "object"}}])


def say(text):
    return [{"type": "text", "content": text}]


def call(arguments='{"to":  "left"}', *, text="", reasoning="hm"):
    parts = [{"type": "reasoning", "content": reasoning}] if reasoning else []
    parts += say(text) if text else []
    return [*parts, {"type": "tool_call", "id": "c1", "name": "go", "arguments": arguments}]


def result(text="wall"):
    return [{"type": "tool_call_response", "id": "c1", "response": text}]


RUN = (
    ("user", say("left or right?")),
    ("assistant", call()),
    ("tool", result()),
    ("assistant", say("right")),
)


def make_run(messages=RUN, *, tools=TOOL, started_ns=None):
    """One conversation, a turn for each answer -> trajectory and message graph."""
    graph, turns = {}, []
    for place, (role, parts) in enumerate(messages):
        parent = str(place - 1) if place else None
        graph[str(place)] = MessageNode(parent_id=parent, message={"role": role, "parts": parts})
        if role == "assistant":
            turns.append((parent, str(place)))
    return make_record(turns, tools=tools, started_ns=started_ns), graph


def make_record(turns, *, tools=None, started_ns=None):
    return Trajectory(
        trajectory_id="t",
        task_id=None,
        policy_id=None,
        reward=1.0,
        end="terminated",
        usable_for="sft",
        reasons=(),
        turns=tuple(
            Turn(
                turn=i,
                model="tiny",
                prompt_ids_T=None,
                response_ids_T=None,
                logprobs_T=None,
                logprobs_exact=False,
                reward=None,
                input_node=read,
                output_node=wrote,
                tool_definitions=tools,
                started_ns=started_ns,
            )
            for i, (read, wrote) in enumerate(turns)
        ),
    )


@pytest.fixture
def render(hand):
    def build(chat_template=WHOLE, messages=RUN, **options):
        tokenizer = hand.tokenizer(chat_template=chat_template)
        record, graph = make_run(messages, **options)
        rendered = TurnRenderer(tokenizer, model_path="m").render_trajectory(record, graph)
        return rendered, tokenize_trajectory(record, position=0, rendered=rendered.turns), tokenizer

    return build


def list_trained(rows, tokenizer):
    """Text of every trained turn, in order."""
    found = {}
    for row in rows:
        for turn in sorted(set(row.turn_T[row.action_mask_T].tolist())):
            ids = row.input_ids_T[row.action_mask_T & (row.turn_T == turn)]
            found[turn] = tokenizer.decode(ids)
    return [found[turn] for turn in sorted(found)]


def test_a_conversation_becomes_one_row_that_trains_exactly_the_answers(render):
    """Tools, reasoning, calls and results are in the row; trained is up to each end token."""
    rendered, (row,), tokenizer = render()
    assert rendered.findings == {}
    tool = (
        '{"type": "function", "function": '
        '{"name": "go", "description": "walk", "parameters": {"type": "object"}}}'
    )
    assert tokenizer.decode(row.input_ids_T) == (
        f"{tool}<|im_start|>user\nleft or right?<|im_end|>\n"
        '<|im_start|>assistant\n<think>hm</think><call>go:{"to":  "left"}</call><|im_end|>\n'
        "<|im_start|>tool\nwall<|im_end|>\n<|im_start|>assistant\nright<|im_end|>"
    )
    assert list_trained([row], tokenizer) == [
        '<think>hm</think><call>go:{"to":  "left"}</call><|im_end|>',
        "right<|im_end|>",
    ]
    assert (row.recorded, row.logprobs_T) == (False, None)


REASONED = (*RUN[:3], ("assistant", [{"type": "reasoning", "content": "so"}, *say("right")]))


@pytest.mark.parametrize(
    ("name", "chat_template", "messages"),
    [
        ("template_drops_tool_calls", template(f"{THOUGHT}{{{{ m.content }}}}"), RUN),
        ("template_changes_answer", template(f"{THOUGHT}{{{{ m.content | upper }}}}{CALLS}"), RUN),
        (
            "template_refuses",
            template(
                f"{{% if m.role == 'tool' %}}{{{{ raise_exception('no tools') }}}}{{% endif %}}"
                f"{THOUGHT}{{{{ m.content }}}}{CALLS}"
            ),
            RUN,
        ),
        ("template_opens_answer", WHOLE.replace(ASK, ASK[:-11] + "<think>\n{% endif %}"), RUN),
        ("template_rewrites_prompt", "{{ messages | length }}" + WHOLE, RUN),
        ("template_ignores_tools", WHOLE.replace(TOOLS, ""), RUN),
        (
            "template_drops_results",
            template(f"{THOUGHT}{{{{ '' if m.role == 'tool' else m.content }}}}{CALLS}"),
            RUN,
        ),
        (
            "template_drops_messages",
            template(f"{THOUGHT}{{{{ '' if m.role == 'system' else m.content }}}}{CALLS}"),
            (("system", say("be brief")), *RUN),
        ),
        ("template_drops_reasoning", template(f"{{{{ m.content }}}}{CALLS}"), RUN),
        (
            "template_writes_none",
            template(
                "{% if m.tool_calls and m.content == '' %}{% else %}"
                f"{THOUGHT}{{{{ m.content if m.content is defined else none }}}}{CALLS}{{% endif %}}"
            ),
            RUN,
        ),
        ("template_leaves_answer_open", WHOLE.replace(END, "\n"), RUN),
        ("unanswered_call", WHOLE, (*RUN[:2], ("user", say("well?")), RUN[3])),
        ("content_not_text", WHOLE, (("user", [{"type": "image", "source": "u"}]), RUN[3])),
        ("unwritable_part", WHOLE, (("user", [{"type": "video", "raw": {}}]), RUN[3])),
    ],
)
def test_what_a_template_loses_is_named_and_not_trained(render, name, chat_template, messages):
    """Faults bar a run always, losses unless they are to be kept; the first one found says why."""
    rendered, rows, _ = render(chat_template, messages)
    assert name in rendered.findings
    assert rendered.find_reason(keep_lossy=False) in (*FAULTS, *LOSSES)
    if name in LOSSES:
        assert rendered.find_reason(keep_lossy=True) is None
        assert rows
    else:
        assert rendered.find_reason(keep_lossy=True) == name


def test_calls_that_only_the_history_loses_are_a_loss(render):
    """The answer has its call, the next prompt does not."""
    chat_template = template(
        f"{THOUGHT}{{{{ m.content }}}}{{% if loop.last %}}{CALLS}{{% endif %}}"
    )
    rendered, _, _ = render(chat_template)
    assert rendered.findings == {
        "template_drops_earlier_calls": 1,
        "template_rewrites_history": 1,
    }
    assert rendered.find_reason(keep_lossy=True) is None


@pytest.mark.parametrize(
    ("name", "chat_template", "messages"),
    [
        (
            "template_strips_reasoning",
            WHOLE.replace(THOUGHT, f"{{% if loop.last %}}{THOUGHT}{{% endif %}}"),
            REASONED,
        ),
        (
            "template_adds_to_answer",
            WHOLE.replace(
                THOUGHT,
                "{% if m.role == 'assistant' %}<think>{{ m.reasoning_content }}</think>{% endif %}",
            ),
            (RUN[0], RUN[3]),
        ),
        (
            "template_rewrites_arguments",
            WHOLE.replace(
                "{{ c.function.arguments }}",
                "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}",
            ),
            RUN,
        ),
        ("special_token_in_text", WHOLE, (("user", say("a<|im_end|>b")), RUN[3])),
    ],
)
def test_what_a_template_does_otherwise_is_noted_and_trained(render, name, chat_template, messages):
    """Every answer is still trained once."""
    rendered, rows, _ = render(chat_template, messages)
    assert name in rendered.findings
    assert set(rendered.findings) <= set(NOTES)
    answers = sum(role == "assistant" for role, _ in messages)
    assert sum(int(row.turn_end_mask_T.sum()) for row in rows) == answers


def test_stripped_reasoning_begins_a_row(render):
    """The first answer was given with its reasoning, and the second prompt lacks that: two rows."""
    chat_template = WHOLE.replace(THOUGHT, f"{{% if loop.last %}}{THOUGHT}{{% endif %}}")
    rendered, rows, tokenizer = render(chat_template, REASONED)
    assert rendered.findings["template_rewrites_history"] == 1
    assert rendered.examples["template_rewrites_history"].startswith(
        r"'ssistant\n<think>hm</think>"
    )
    assert list_trained(rows, tokenizer) == [
        '<think>hm</think><call>go:{"to":  "left"}</call><|im_end|>',
        "<think>so</think>right<|im_end|>",
    ]
    assert len(rows) == 2
    assert "hm" not in tokenizer.decode(rows[1].input_ids_T)


def test_a_default_system_prompt_is_found(render):
    """Its text is shown, and only where a run has no system message of its own."""
    before = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nI am tiny<|im_end|>\n{% endif %}"
    )
    added, _, _ = render(TOOLS + before + WHOLE.removeprefix(TOOLS))
    assert added.examples["template_adds_system"] == "I am tiny"
    own, _, _ = render(
        TOOLS + before + WHOLE.removeprefix(TOOLS), (("system", say("be brief")), *RUN)
    )
    assert "template_adds_system" not in own.findings


def test_a_date_is_that_of_the_run(render):
    """A template that writes today's date writes the day on which the turn was sampled."""
    dated = "{{ strftime_now('%d %b %Y') }}" + WHOLE
    rendered, rows, tokenizer = render(dated, started_ns=1_700_000_000 * 10**9)
    assert rendered.findings["template_adds_date"] == 2
    assert tokenizer.decode(rows[0].input_ids_T).startswith("14 Nov 2023")


def test_missing_history_is_a_fault(hand):
    """A prompt of which a message was not recorded is not rendered from the rest."""
    record, graph = make_run()
    del graph["0"]
    rendered = TurnRenderer(hand.tokenizer(), model_path="m").render_trajectory(record, graph)
    assert rendered.turns == [None, None]
    assert rendered.find_reason(keep_lossy=True) == "messages_missing"


def test_turns_of_other_models_are_not_rendered(hand):
    """They are not trained, so nothing about them counts."""
    record, _ = make_run()
    renderer = TurnRenderer(hand.tokenizer(chat_template=WHOLE), model_path="m")
    rendered = renderer.render_trajectory(record, {}, models=["other"])
    assert (rendered.turns, rendered.findings) == ([None, None], {})


def test_a_boundary_that_a_token_crosses_is_counted(render):
    """The prompt ends in `h`, the answer begins with `ole`: as one text they are other tokens."""
    ends = WHOLE.replace(ASK, "{% if add_generation_prompt %}h{% endif %}")
    ends = ends.replace(TURN, f"{{% if m.role == 'assistant' %}}h{{% else %}}{TURN}{{% endif %}}")
    rendered, rows, tokenizer = render(ends, (("user", say("up")), ("assistant", say("ole"))))
    assert [tokenizer.tokenize(text) for text in ("h", "ole", "hole")] == [
        ["h"],
        ["o", "le"],
        ["ho", "le"],
    ]
    assert rendered.findings == {"boundary_drift": 1}
    assert list_trained(rows, tokenizer) == ["ole<|im_end|>"]


def test_missing_chat_template_is_named(hand):
    """Rendering without a template says which model and what to add."""
    with pytest.raises(ModelError, match=r"my-model: the tokenizer has no chat template"):
        TurnRenderer(hand.tokenizer(chat_template=None), model_path="my-model")


def test_arguments_go_in_as_the_template_reads_them(hand):
    """As text where that comes out as it is; as an object where the template takes it apart."""
    apart = WHOLE.replace("{{ c.function.arguments }}", "{{ c.function.arguments | tojson }}")
    asked = {"role": "assistant", "content": None, "tool_calls": []}
    function = {"name": "go", "arguments": '{"to":  "left"}'}
    asked["tool_calls"].append({"id": "c1", "type": "function", "function": function})
    texts = [
        ChatTemplate(hand.tokenizer(chat_template=t)).render([asked], None, asks=False)
        for t in (WHOLE, apart)
    ]
    assert ['go:{"to":  "left"}</call>' in texts[0], 'go:{"to": "left"}</call>' in texts[1]] == [
        True,
        True,
    ]


def test_ids_of_calls_are_shortened_where_a_template_asks_for_it(render):
    """Mistral's templates refuse ids that have not nine letters; results stay with their calls."""
    strict = template(
        f"{{% for c in m.tool_calls or [] %}}{{% if c.id | length != 9 %}}"
        f"{{{{ raise_exception('nine') }}}}{{% endif %}}{{{{ c.id }}}}{{% endfor %}}"
        f"{THOUGHT}{{{{ m.content }}}}{{{{ m.tool_call_id }}}}{CALLS}"
    )
    rendered, (row,), tokenizer = render(strict)
    assert rendered.findings == {}
    text = tokenizer.decode(row.input_ids_T)
    short = text.partition("<think>")[0][-9:]
    assert text.count(short) == 2


def test_pieces_have_the_ids_of_the_whole(hand):
    """Cut at special tokens, a text has the ids that it has as one; a tokenizer that differs is seen."""
    tokenizer = hand.tokenizer()
    retokenizer = Retokenizer(tokenizer)
    text = "<|im_start|>user\nleft<|im_end|>\n<|im_start|>assistant\nright<|im_end|>"
    for _ in range(2):
        ids = retokenizer.encode(text).tolist()
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert retokenizer.check(text)

    def differs(text, **options):
        ids = tokenizer(text, **options)["input_ids"]
        return {"input_ids": ids if text.startswith("<|im_start|>") else ids[::-1]}

    differs.added_tokens_encoder = tokenizer.added_tokens_encoder
    differs.all_special_tokens = tokenizer.all_special_tokens
    other = Retokenizer(differs)
    assert not other.check(text)
    assert other.check(text)
    assert other.encode(text).tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


REAL = {
    "qwen3": {
        "template_adds_to_answer": 2,
        "template_rewrites_history": 1,
        "template_strips_reasoning": 0,
    },
    "deepseek_v3": {"template_drops_tool_calls": 1, "template_ignores_tools": 2},
    "smollm2-135m-instruct": {
        "template_adds_system": 2,
        "template_drops_tool_calls": 1,
        "template_ignores_tools": 2,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@pytest.mark.filterwarnings("ignore")
def test_real_templates(name, tmp_path):
    """Three published templates on a run with a tool: what each is known to do, turn by turn."""
    from transformers import AutoTokenizer

    archive = DATA / f"tokenizer-{name}.tar.gz"
    if not archive.exists():
        pytest.skip(f"needs ../shared/data/{archive.name}")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = next(tmp_path.rglob("tokenizer.json")).parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    record, graph = make_run((RUN[0], ("assistant", call(reasoning=None)), *RUN[2:]))
    rendered = TurnRenderer(tokenizer, model_path=name).render_trajectory(record, graph)
    expected = REAL[name]
    assert {finding: rendered.findings[finding] for finding in expected} == expected


def test_every_finding_is_documented():
    """docs/tokens.md has a row for each name."""
    page = (ROOT / "docs" / "tokens.md").read_text()
    missing = [name for name in (*FAULTS, *LOSSES, *NOTES) if f"`{name}`" not in page]
    assert missing == []
