"""Dataset -> OTLP -> dataset: the same tables; what cannot be the same is named."""

import base64
import json

import pytest
from google.protobuf.json_format import Parse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from starpo_trace import semconv as keys
from starpo_trace.convert.otlp import SpanRow
from starpo_trace.convert.states import hash_state
from starpo_trace.convert.writers.forms import WriteOptions, write_dataset
from starpo_trace.mergepatch import make_merge_patch
from starpo_trace.messages import dump_json
from starpo_trace.signing import Keyring, SignedReward, sign_reward

SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = dump_json([{"type": "function", "function": {"name": "look"}}])
MODES = pytest.mark.parametrize("mode", ["delta", "full"])

FIELDS = (
    *("source", "trace_id", "span_id", "parent_id", "name", "scope", "start_ns", "end_ns"),
    *("error", "num_dropped", "attributes", "events", "links"),
)


def replace(row, **fields):
    """A span row with other values of some fields."""
    return SpanRow(**{name: getattr(row, name) for name in FIELDS} | fields)


def write_again(datasets, dataset, mode="delta", **options):
    """A dataset -> what the writer reports, the file, and the dataset made of it."""
    file = datasets.folder / f"{dataset.name}-{mode}.jsonl"
    report = write_dataset(dataset, file, form="otlp", options=WriteOptions(history=mode))
    return report, file, datasets.build_file(file, **options)


def check_same(datasets, rows, mode, **options):
    """Rows whose dataset comes back without a difference."""
    dataset = datasets.build(rows, **options)
    report, _, again = write_again(datasets, dataset, mode, **options)
    before, after = datasets.read(dataset), datasets.read(again)
    # Ids of spans that are no turn are new, and what was rejected is gone.
    assert after == {**before, "spans": after["spans"], "rejected": []}
    assert (report.left_out, report.losses) == ({}, {})
    return dataset, again


def call_tool(name, number):
    function = {"name": name, "arguments": f'{{"n":  {number}}}'}
    return {
        "role": "assistant",
        "content": None,
        "reasoning_content": f"because {number}",
        "tool_calls": [{"id": f"c{number}", "type": "function", "function": function}],
    }


class Player:
    """Plays one trajectory as drawn, with one clock and one row of step numbers."""

    def __init__(self, spans, draw, name):
        self.spans, self.draw = spans, draw
        self.root = spans.root(
            name,
            end=draw(st.sampled_from(["terminated", "truncated", "error", None])),
            **{
                keys.TASK_ID: draw(st.sampled_from(["a", "b", None])),
                keys.ATTEMPT: draw(st.none() | st.integers(-3, 3)),
                keys.POLICY_ID: draw(st.none() | st.text(max_size=3)),
                keys.CONVERSATION_ID: draw(st.none() | st.just(f"talk {name}")),
            },
        )
        self.history = [SYSTEM, {"role": "user", "content": f"{name}: {draw(st.text(max_size=5))}"}]
        self.step = 0
        self.rows = []
        self.calls = []
        self.ids = []
        self.state = None

    def common(self, record):
        return {
            keys.RECORD: record,
            keys.TRAJECTORY_ID: self.root.attributes[keys.TRAJECTORY_ID],
            keys.STEP: self.step,
        }

    def act(self):
        """A call, in one of many ways; then perhaps the tool."""
        draw = self.draw
        prompt = self.history
        if draw(st.booleans()):
            prompt = [{"role": "system", "content": "sub"}, {"role": "user", "content": "do"}]
        elif draw(st.integers(0, 5)) == 0:
            prompt = [self.history[0], {"role": "user", "content": "summary"}]
        is_main = prompt is self.history
        answer = draw(
            st.sampled_from(
                [
                    {"role": "assistant", "content": "yes"},
                    {"role": "assistant", "content": "yes", "reasoning_content": f"{self.step}"},
                    {"role": "assistant", "content": "é\u2028\x00\ud800"},
                    call_tool("look", self.step),
                    None,
                ]
            )
        )
        attributes = {
            keys.TOOL_DEFINITIONS: draw(st.sampled_from([TOOLS, None])),
            keys.REQUEST_TEMPERATURE: draw(st.sampled_from([None, 1.0, 0.7])),
            keys.RESPONSE_FINISH_REASONS: draw(st.sampled_from([None, ["stop"], ["length"]])),
            keys.STREAM_OUTCOME: draw(st.sampled_from([None, None, None, "cut", "exhausted"])),
            **self.draw_tokens(),
        }
        error = None
        if draw(st.integers(0, 4)) == 0:
            error = draw(st.sampled_from(["", "no such thing", "a: b: c", "x"]))
            attributes[keys.ERROR_TYPE] = draw(
                st.sampled_from([None, "TimeoutError", "CancelledError"])
            )
        self.calls.append(
            self.spans.call(
                self.root, self.step, prompt, answer, attributes=attributes, error=error
            )
        )
        self.rows.append(self.calls[-1])
        self.step += 1
        if is_main and answer is not None:
            self.history = [*self.history, answer]
        if is_main and answer is not None and answer.get("tool_calls"):
            call = answer["tool_calls"][0]
            if draw(st.booleans()):
                self.rows.append(self.spans.row(self.common("step"), parent=self.root))
                self.step += 1
            told = {"role": "tool", "tool_call_id": call["id"], "content": "done \ud83d"}
            self.history = [*self.history, told]

    def draw_tokens(self):
        draw = self.draw
        kind = draw(st.sampled_from(["none", "whole", "after", "masked"]))
        if kind == "none":
            return {}
        response = draw(st.lists(st.integers(0, 9), max_size=4))
        rest = draw(st.lists(st.integers(0, 9), max_size=4))
        logprobs = draw(st.none() | st.just([-0.1 * (n + 1) for n in response]))
        if kind == "masked" and response:
            response[0] = -2
            logprobs = None if logprobs is None else [None, *logprobs[1:]]
        found = {
            keys.RESPONSE_TOKEN_IDS: json.dumps(response),
            keys.RESPONSE_LOGPROBS: None if logprobs is None else json.dumps(logprobs),
            keys.PROMPT_TOKEN_IDS: json.dumps(rest),
        }
        if kind == "after" and self.ids:
            step, length = draw(st.sampled_from(self.ids))
            found[keys.PROMPT_TOKEN_IDS_BASE_STEP] = step
            found[keys.PROMPT_TOKEN_IDS_BASE_LENGTH] = length
            self.ids.append((self.step, length + len(rest) + len(response)))
        else:
            self.ids.append((self.step, len(rest) + len(response)))
        return found

    def show_state(self):
        """A state, as a patch of the last one where there is one."""
        value = {"n": self.step, "left": self.draw(st.lists(st.integers(0, 3), max_size=2))}
        attributes = {**self.common("state"), keys.STATE_HASH: hash_state(value)}
        if self.state is None or self.draw(st.booleans()):
            attributes[keys.STATE_VALUE] = dump_json(value)
        else:
            attributes[keys.STATE_BASE] = hash_state(self.state)
            attributes[keys.STATE_DIFF] = dump_json(make_merge_patch(self.state, value))
        self.state = value
        self.rows.append(self.spans.row(attributes, parent=self.root))

    def judge(self):
        """A reward of the run or of a step, recorded by us or by somebody."""
        draw = self.draw
        is_of_run = draw(st.booleans()) or not self.calls
        target = self.root if is_of_run else draw(st.sampled_from(self.calls))
        reward = self.spans.reward(
            target,
            draw(st.floats(-2, 2)),
            **{
                keys.REWARD_ID: f"{self.root.attributes[keys.TRAJECTORY_ID]} r{draw(st.integers(0, 2))}",
                keys.REWARD_SCOPE: "trajectory" if is_of_run else "step",
                keys.REWARD_KIND: "outcome" if is_of_run else "process",
                keys.REWARD_SOURCE: draw(st.sampled_from(["environment", "judge"])),
                keys.REWARD_STEP: None if is_of_run else target.attributes[keys.STEP],
                keys.REWARD_MAX: draw(st.sampled_from([None, 1.0])),
                keys.EVALUATION_EXPLANATION: draw(st.none() | st.text(max_size=4)),
                keys.STEP: self.step,
            },
        )
        scope = draw(st.sampled_from([keys.SCOPE_NAME, "somebody"]))
        self.rows.append(replace(reward, scope=scope))

    def observe(self):
        """What came after the last call."""
        told = [*self.history, {"role": "user", "content": f"bye {self.step}"}]
        self.rows.append(self.spans.row({**self.common("observation"), **self.spans.history(told)}))

    def end(self):
        """The rows, the root with its number of steps."""
        is_known = self.root.attributes.get(keys.TRAJECTORY_END) is not None
        attributes = {**self.root.attributes}
        if is_known:
            attributes[keys.TRAJECTORY_NUM_STEPS] = self.step + self.draw(
                st.sampled_from([0, 0, 1])
            )
        last = self.spans.row({}).start_ns
        fields = {"span_id": self.root.span_id, "start_ns": self.root.start_ns}
        root = self.spans.row(
            attributes, name=self.root.name, end_ns=last if is_known else None, **fields
        )
        if self.draw(st.integers(0, 9)) == 0:
            return self.rows
        return [root, *self.rows]


@st.composite
def trajectories(draw, make_spans):
    """Span rows of a few trajectories in one trace."""
    spans = make_spans()
    rows = []
    for number in range(draw(st.integers(1, 3))):
        spans.known = set()
        player = Player(spans, draw, f"t{number}")
        player.act()
        moves = [player.act, player.act, player.show_state, player.judge]
        for move in draw(st.lists(st.sampled_from(moves), max_size=8)):
            move()
        if draw(st.booleans()):
            player.observe()
        rows += player.end()
    return rows


@pytest.mark.slow
@MODES
def test_drawn_datasets_come_back(spans, datasets, mode):
    """Branches, sub-agents, states, rewards, tokens, errors and holes, drawn at random."""

    @settings(
        max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(trajectories(type(spans)))
    def check(rows):
        check_same(datasets, rows, mode)

    check()


def one_call(spans, step=0, *, root=None, **fields):
    """A root and a call that says hello."""
    root = root or spans.root(num_steps=1, **{keys.TASK_ID: "task"})
    user = {"role": "user", "content": f"hi {step}"}
    answer = {"role": "assistant", "content": f"ho {step}"}
    return root, spans.call(root, step, [SYSTEM, user], answer, **fields)


@MODES
def test_parts_come_back(spans, datasets, mode):
    """A resumed run, a service's part that is still open, and a part whose beginning is not here."""
    root = spans.root(num_steps=2)
    resumed = {keys.PART: "resume-1", keys.PART_BASE: 1}
    again = spans.root("t1", num_steps=2, **resumed)
    run = [root, one_call(spans, 0, root=root)[1], again]
    run.append(one_call(spans, 1, root=root, attributes=resumed)[1])
    spans.known = set()
    far = spans.root("t2", end=None)
    remote = {keys.PART: "remote-1", keys.PART_BASE: 3}
    alone = one_call(spans, 3, root=far, attributes=remote)[1]
    ended = spans.row({keys.RECORD: "part", keys.TRAJECTORY_ID: "t2", **remote})
    dataset, _ = check_same(datasets, [*run, alone, ended], mode)
    found = [
        (row["trajectory_id"], row["num_parts"], row["reasons"])
        for row in datasets.read(dataset)["trajectories"]
    ]
    tokens = ["logprob_missing", "no_reward", "token_ids_missing"]
    assert found == [
        ("t1", 2, tokens),
        ("t2", 1, [*tokens, "unended"]),
    ]


@MODES
def test_what_a_limit_cut_comes_back(spans, datasets, mode):
    """A prompt whose text was cut ends at the node that the whole one had."""
    root, call = one_call(spans, attributes={keys.HISTORY_LENGTH: 2})
    mark = f"[starpo:cut 9 bytes, blake2b {'a' * 32}]"
    prompt = [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": mark}]},
    ]
    cut = replace(call, attributes={**call.attributes, keys.INPUT_MESSAGES: dump_json(prompt)})
    told = {"role": "user", "content": "go on"}
    history = [
        SYSTEM,
        {"role": "user", "content": "hi 0"},
        {"role": "assistant", "content": "ho 0"},
    ]
    second = spans.call(root, 1, [*history, told], {"role": "assistant", "content": "ok"})
    dataset, _ = check_same(datasets, [root, cut, second], mode)
    [row] = datasets.read(dataset)["trajectories"]
    assert (row["usable_for"], "content_truncated" in row["reasons"]) == ("none", True)


def test_a_cut_in_a_tools_span_is_not_forgotten(spans, datasets):
    """The span is not in the dataset; the verdict stays."""
    root, call = one_call(spans)
    result = f"[starpo:cut 9 bytes, blake2b {'a' * 32}]"
    step = {keys.RECORD: "step", keys.TRAJECTORY_ID: "t1", keys.STEP: 1}
    tool = spans.row({**step, keys.TOOL_CALL_RESULT: result}, parent=root)
    check_same(datasets, [root, call, tool], "delta")


@MODES
def test_odd_calls_come_back(spans, datasets, mode):
    """Content off, several choices, an answer without its prompt, an unended call, twins."""
    root = spans.root(num_steps=6)
    off = dict.fromkeys((keys.INPUT_MESSAGES, keys.HISTORY_HASH, keys.OUTPUT_MESSAGES))
    choices = dump_json(
        [
            {"role": "assistant", "parts": [{"type": "text", "content": text}]}
            for text in ("one", "two")
        ]
    )
    blind = {keys.INPUT_MESSAGES: None, keys.HISTORY_HASH: None, keys.HISTORY_LENGTH: None}
    rows = [
        root,
        one_call(spans, 0, root=root, attributes=off)[1],
        one_call(spans, 1, root=root, attributes={keys.OUTPUT_MESSAGES: choices})[1],
        one_call(spans, 2, root=root, attributes=blind)[1],
        replace(one_call(spans, 3, root=root)[1], end_ns=None),
        one_call(spans, 4, root=root)[1],
        one_call(spans, 4, root=root)[1],
    ]
    dataset, _ = check_same(datasets, rows, mode)
    tables = datasets.read(dataset)
    assert "duplicate_step" in tables["trajectories"][0]["reasons"]
    assert [row["text"] for row in tables["turns"]] == [None, "one", "ho 2", "ho 3", "ho 4", "ho 4"]


def test_events_and_wrong_rewards_come_back(spans, datasets):
    """Evaluation events on calls, scores out of range, of no step, and from a judge."""
    root, call = one_call(spans)
    event = (
        "gen_ai.evaluation.result",
        call.start_ns + 5,
        {keys.EVALUATION_NAME: "tone", keys.EVALUATION_VALUE: 0.5},
    )
    nothing = (event[0], call.start_ns + 6, {keys.EVALUATION_NAME: "none"})
    wrong = [
        {keys.REWARD_ID: "high", keys.REWARD_MAX: 0.5},
        {keys.REWARD_ID: "nowhere", keys.REWARD_SCOPE: "turn", keys.REWARD_STEP: 7},
        {keys.REWARD_ID: "judge", keys.REWARD_SOURCE: "judge", keys.REWARD_JUDGE_ID: "j"},
        {keys.REWARD_ID: "late", keys.EVALUATION_NAME: "other"},
    ]
    rewards = [spans.reward(root, 1.0, **each) for each in wrong]
    late = replace(rewards[-1], trace_id=f"{9:032x}")
    rows = [root, replace(call, events=(event, nothing)), *rewards[:-1], late]
    dataset, _ = check_same(datasets, rows, "delta")
    found = {
        row["reward_id"]: row["untrusted_because"] for row in datasets.read(dataset)["rewards"]
    }
    target = f"{call.trace_id}:{call.span_id}"
    assert found == {
        f"{target}:tone": "not recorded by starpo_trace",
        f"{target}:none": "not recorded by starpo_trace",
        "high": "outside of its range",
        "nowhere": "there is no step 7, the last one is 0",
        "judge": "source judge is not trusted",
        "late": None,
    }


def test_spans_of_one_id_stay_two(spans, datasets):
    """Two runs in one trace whose calls have the same span id."""
    first, one = one_call(spans)
    second = spans.root("t2", num_steps=1)
    other = one_call(spans, root=second, span_id=one.span_id)[1]
    other = replace(other, trace_id=f"{2:032x}")
    second = replace(second, trace_id=f"{2:032x}")
    dataset, again = check_same(datasets, [first, one, second, other], "delta")
    assert [row["span_id"] for row in datasets.read(again)["turns"]] == [one.span_id] * 2
    assert len(datasets.read(dataset)["trajectories"]) == 2


def test_the_verdict_is_never_better(spans, datasets):
    """A span that was rejected is gone; what it took from the run stays taken."""
    tokens = {
        keys.PROMPT_TOKEN_IDS: "[1]",
        keys.RESPONSE_TOKEN_IDS: "[2]",
        keys.RESPONSE_LOGPROBS: "[-0.5]",
    }
    root, call = one_call(spans, attributes=tokens)
    broken = spans.row(
        {
            keys.RECORD: "observation",
            keys.TRAJECTORY_ID: "t1",
            keys.INPUT_MESSAGES: "[]",
            keys.HISTORY_HASH: "00" * 16,
        },
        parent=root,
    )
    whole = datasets.build([root, call, spans.reward(root, 1.0)])
    assert datasets.read(whole)["trajectories"][0]["usable_for"] == "rl"
    dataset = datasets.build([root, call, spans.reward(root, 1.0), broken])
    report, _, again = write_again(datasets, dataset)
    before, after = (datasets.read(each)["trajectories"][0] for each in (dataset, again))
    assert (before["usable_for"], before["reasons"]) == ("sft", ["history_mismatch"])
    assert (after["usable_for"], after["reasons"]) == ("sft", ["dropped_attributes"])
    assert list(report.describe())[1:] == ["  not kept: reason history_mismatch, in 1 trajectories"]
    same = {"usable_for", "reasons"}
    assert {k: v for k, v in before.items() if k not in same} == {
        k: v for k, v in after.items() if k not in same
    }


def test_runs_that_contradict_themselves_are_left_out(spans, datasets):
    """Two copies of a call that differ: nobody knows what happened."""
    root, call = one_call(spans)
    forged = replace(call, attributes={**call.attributes, keys.REQUEST_MODEL: "other"})
    other = spans.root("t2", num_steps=1)
    dataset = datasets.build([root, call, forged, other, one_call(spans, root=other)[1]])
    report, _, again = write_again(datasets, dataset)
    assert report.left_out == {"conflicting_copies": 1}
    assert [row["trajectory_id"] for row in datasets.read(again)["trajectories"]] == ["t2"]


def sign(span, trajectory, name, value, reward_id, ring):
    """A reward span with its signature."""
    signed = SignedReward(
        trajectory_id=trajectory,
        task_id="task",
        reward_id=reward_id,
        name=name,
        value=value,
        scope="trajectory",
        step=None,
        kind="outcome",
        source="environment",
        signed_ns=5,
        verifier_digest=None,
    )
    attributes = {
        **span.attributes,
        keys.TASK_ID: "task",
        keys.REWARD_SIGNATURE: sign_reward(signed, ring),
        keys.REWARD_SIGNED_NS: 5,
    }
    return replace(span, attributes=attributes)


def test_signatures_are_lost_but_not_what_they_decided(spans, datasets):
    """The signed reward still counts against a later unsigned one; a forged one still does not."""
    ring = Keyring(keys={"k": b"0" * 32})
    root, call = one_call(spans)
    signed = spans.reward(root, 1.0, **{keys.REWARD_ID: "s"})
    signed = sign(signed, "t1", "reward", 1.0, "s", ring)
    later = spans.reward(root, 0.0, **{keys.REWARD_ID: "u"})
    forged = spans.reward(root, 5.0, **{keys.REWARD_ID: "f"})
    forged = sign(forged, "t1", "reward", 4.0, "f", ring)
    dataset = datasets.build(
        [root, call, signed, later, forged], reward_keys=ring, require_signed=False
    )
    report, _, again = write_again(datasets, dataset)
    before, after = datasets.read(dataset), datasets.read(again)
    assert before["trajectories"][0]["reward"] == after["trajectories"][0]["reward"] == 1.0
    assert {row["reward_id"]: row["trusted"] for row in before["rewards"]} == {
        "s": True,
        "u": True,
        "f": False,
    }
    assert {row["reward_id"]: row["trusted"] for row in after["rewards"]} == {
        "s": True,
        "u": False,
        "f": False,
    }
    assert {row["signature"] for row in after["rewards"]} == {"missing"}
    assert report.losses == {
        "reason reward_signature_invalid": 1,
        "signatures of rewards": 1,
        "trust in rewards that a signed one replaced": 1,
    }


@MODES
def test_any_reader_sees_genai_spans(spans, datasets, mode):
    """Protobuf's own JSON reader takes every line; with full history each call has its prompt."""
    root, call = one_call(spans)
    history = [
        SYSTEM,
        {"role": "user", "content": "hi 0"},
        {"role": "assistant", "content": "ho 0"},
    ]
    more = [*history, {"role": "user", "content": "more"}]
    second = spans.call(root, 1, more, {"role": "assistant", "content": "no"})
    _, file, _ = write_again(datasets, datasets.build([root, call, second]), mode)
    [line] = file.read_text().splitlines()
    fields = json.loads(line)
    for group in fields["resourceSpans"]:
        for scope in group["scopeSpans"]:
            for span in scope["spans"]:  # OTLP has ids in hexadecimal digits, protobuf in base64
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in span:
                        span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    request = Parse(json.dumps(fields), ExportTraceServiceRequest())
    [scope] = request.resource_spans[0].scope_spans
    found = []
    for span in scope.spans:
        attributes = {each.key: each.value.string_value for each in span.attributes}
        if attributes.get(keys.OPERATION_NAME) == "chat":
            prompt = json.loads(attributes[keys.INPUT_MESSAGES])
            found.append([message["parts"][0]["content"] for message in prompt])
            assert span.parent_span_id == scope.spans[0].span_id
    texts = ["Be brief.", "hi 0", "ho 0", "more"]
    assert found == [texts[:2], texts if mode == "full" else ["more"]]
