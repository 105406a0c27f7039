"""Logs as Inspect wrote them over the years, and as they break; what it writes now is run elsewhere."""

import io
import json
import sys
import zipfile

import polars as pl
import pytest
import zstandard

from starpo_trace.errors import SourceError

HASH = "0" * 31 + "a"


def say(role, content, ident=None, **fields):
    return {"role": role, "content": content, **({"id": ident} if ident else {}), **fields}


SYSTEM, USER = say("system", "s", "m1"), say("user", "u", "m2")
CALL = {"id": "c1", "function": "add", "arguments": {"a": 1}, "type": "function"}
ASKS = say("assistant", "", "m3", tool_calls=[CALL], source="generate")
RESULT = say("tool", "2", "m4", tool_call_id="c1", function="add")
SAYS = say("assistant", "two", "m5", source="generate")


def model(prompt, answer, **fields):
    output = {"model": "m", "choices": [{"message": answer, "stop_reason": "stop"}]}
    return {"event": "model", "model": "p/m", "input": prompt, "output": output, **fields}


def tool_event(**fields):
    return {"event": "tool", "id": "c1", "function": "add", "arguments": {"a": 1}, **fields}


def make_sample(**fields):
    """A run of two calls and a tool, with whole prompts in its events."""
    events = [
        model([SYSTEM, USER], ASKS),
        tool_event(result="2"),
        model([SYSTEM, USER, ASKS, RESULT], SAYS),
    ]
    return {
        "id": "one",
        "epoch": 1,
        "messages": [SYSTEM, USER, ASKS, RESULT, SAYS],
        "events": events,
        "scores": {"match": {"value": "C"}},
        "attachments": {},
        "completed_at": "2025-06-01T10:00:01+00:00",
        **fields,
    }


def make_log(*samples, **fields):
    evaluation = {"eval_id": "e1", "task": "sums", "task_version": 0, "model": "p/m"}
    return {
        "version": 2,
        "status": "success",
        "eval": {**evaluation, **fields},
        "samples": list(samples),
    }


def make_zip(log, *, method=zipfile.ZIP_DEFLATED, head="header.json"):
    """The same log as Inspect's zip."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(head, json.dumps({key: log[key] for key in ("version", "status", "eval")}))
        for sample in log["samples"]:
            name = f"samples/{sample['id']}_epoch_{sample['epoch']}.json"
            archive.writestr(name, json.dumps(sample))
    return stream.getvalue()


def test_prompts_arguments_and_results_of_a_run(convert):
    """Two turns on one branch; arguments that Inspect parsed are written as it sends them."""
    (run,) = (tables := convert({"a.json": make_log(make_sample())}).tables)[
        "trajectories"
    ].to_dicts()
    assert (run["task_id"], run["attempt"], run["policy_id"]) == ("sums/one", 1, "p/m")
    assert (run["environment_name"], run["environment_version"]) == ("sums", "0")
    assert (run["num_turns"], run["num_steps"], run["num_branches"]) == (2, 3, 1)
    assert (run["reward"], run["end"]) == (1.0, "terminated")
    (call,) = tables["turns"].filter(pl.col("turn") == 0)["tool_calls"][0]
    assert call == {"id": "c1", "name": "add", "arguments": '{"a": 1}'}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("head", ["header.json", "_journal/start.json"])
def test_a_zip_holds_the_same_as_a_document(convert, method, head):
    """Also one of an evaluation that has not ended, and has a journal only."""
    log = make_log(make_sample(), make_sample(epoch=2))
    once = convert({"a.json": log}, "a.json")
    both = convert({"b.eval": make_zip(log, method=method, head=head)})
    assert both.accounting.duplicates == once.accounting.spans_read == 10


def test_messages_are_read_where_there_are_no_events(convert):
    """What was generated is an answer, other answers are part of the prompt."""
    example = say("assistant", "an example", "m0")
    sample = make_sample(events=[], messages=[SYSTEM, example, USER, ASKS, RESULT, SAYS])
    tables = convert({"a.json": make_log(sample)}).tables
    (run,) = tables["trajectories"].to_dicts()
    assert (run["num_turns"], run["num_tool_calls"], run["num_steps"]) == (2, 1, 3)
    roles = tables["messages"].sort("depth").select("role", "sampled_turn").rows()
    assert roles[1] == ("assistant", None)


def test_scorers_of_before_spans_are_known_by_their_steps(convert):
    """A grader's call within a step of kind scorer is no turn, and makes its score a judge's."""
    begin = {"event": "step", "action": "begin", "type": "scorer", "name": "match"}
    end = {**begin, "action": "end"}
    grading = model([say("user", "good?")], say("assistant", "yes"))
    sample = make_sample()
    sample["events"] += [begin, {**grading, "model": "p/judge"}, end]
    tables = convert({"a.json": make_log(sample)}).tables
    assert tables["turns"].height == 2
    (reward,) = tables["rewards"].to_dicts()
    assert (reward["source"], reward["judge_id"], reward["trusted"]) == ("judge", "p/judge", False)


def test_events_within_a_tools_event_are_calls_of_the_run(convert):
    """Before spans, what a sub-agent did stood within the event of the tool that it was."""
    inner = model([say("user", "inner", "i1")], say("assistant", "done", "i2"))
    sample = make_sample()
    sample["events"][1]["events"] = [inner]
    (run,) = convert({"a.json": make_log(sample)}).tables["trajectories"].to_dicts()
    assert (run["num_turns"], run["num_branches"]) == (3, 2)


def test_pools_references_and_attachments_are_put_in_place(convert):
    """A prompt as stretches of the sample's messages, a text that is kept elsewhere."""
    pool = [SYSTEM, say("user", f"attachment://{HASH}", "m2"), ASKS, RESULT]
    events = [
        model([], ASKS, input_refs=[[0, 2]]),
        tool_event(result=f"attachment://{HASH}"),
        model([], SAYS, input_refs=[[0, 1], [1, 4]]),
    ]
    sample = make_sample(
        events=events, events_data={"messages": pool}, attachments={HASH: "a long text"}
    )
    tables = convert({"a.json": make_log(sample)}).tables
    texts = tables["messages"].sort("depth")["message"].to_list()
    assert json.loads(texts[1])["parts"] == [{"type": "text", "content": "a long text"}]
    assert tables["trajectories"]["num_branches"].to_list() == [1]


def test_a_history_that_was_cut_is_a_branch(convert):
    """The second prompt lacks the first one's question."""
    sample = make_sample()
    sample["events"][2]["input"] = [SYSTEM, say("user", "summary", "m9")]
    (run,) = convert({"a.json": make_log(sample)}).tables["trajectories"].to_dicts()
    assert (run["num_turns"], run["num_branches"], run["num_messages"]) == (2, 2, 5)


def test_an_error_of_a_tool_is_read_as_the_model_reads_it(convert):
    """Its message stands in the place of a result."""
    failed = {**RESULT, "content": "", "error": {"type": "unknown", "message": "no such file"}}
    sample = make_sample()
    sample["events"][2]["input"] = [SYSTEM, USER, ASKS, failed]
    tables = convert({"a.json": make_log(sample)}).tables
    (text,) = tables["messages"].filter(pl.col("role") == "tool")["message"].to_list()
    assert json.loads(text)["parts"][0]["response"] == "Error: no such file"


def test_reasoning_images_and_other_contents_are_parts(convert):
    """Each kind by its own name, with what Inspect knows of it."""
    contents = [
        {"type": "reasoning", "reasoning": "hm", "signature": "x", "redacted": False},
        {"type": "text", "text": "two", "citations": None},
    ]
    shown = [{"type": "image", "image": "data:image/png;base64,AA", "detail": "auto"}]
    sample = make_sample()
    sample["events"][0]["input"] = [SYSTEM, say("user", shown, "m2")]
    sample["events"][2]["output"]["choices"][0]["message"] = say("assistant", contents, "m5")
    tables = convert({"a.json": make_log(sample)}).tables
    last = tables["turns"].sort("turn").to_dicts()[-1]
    assert (last["reasoning"], last["text"]) == ("hm", "two")
    parts = [json.loads(each)["parts"][0] for each in tables["messages"]["message"]]
    image = {"image_url": {"url": "data:image/png;base64,AA"}}
    assert {"type": "image_url", "raw": image} in parts


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"limit": {"type": "message", "limit": 30}}, "truncated"),
        ({"limit": {"type": "operator", "limit": 1}}, "abandoned"),
        ({"error": {"message": "ValueError('x')"}}, "error"),
        ({"error": {"message": "CancelledError()"}}, "abandoned"),
        ({"completed_at": None, "scores": None}, "unknown"),
    ],
)
def test_the_end_is_what_the_sample_says(convert, fields, end):
    """Limits, exceptions, people who stop it."""
    tables = convert({"a.json": make_log(make_sample(**fields))}).tables
    assert tables["trajectories"]["end"].to_list() == [end]


def test_an_answer_cut_by_a_limit_of_tokens_truncates_the_run(convert):
    """It was the last one."""
    sample = make_sample()
    sample["events"][2]["output"]["choices"][0]["stop_reason"] = "max_tokens"
    tables = convert({"a.json": make_log(sample)}).tables
    assert tables["trajectories"]["end"].to_list() == ["truncated"]


def test_a_call_without_an_answer_is_an_error_and_no_empty_answer(convert):
    """The provider failed, and was asked again."""
    failed = {**model([SYSTEM, USER], None), "output": {"choices": []}, "error": "overloaded"}
    sample = make_sample()
    sample["events"].insert(0, failed)
    tables = convert({"a.json": make_log(sample)}).tables
    turns = tables["turns"].sort("turn").select("outcome", "error").rows()
    assert turns == [("error", "error: overloaded"), ("ok", None), ("ok", None)]
    (run,) = tables["trajectories"].to_dicts()
    assert "call_error" in run["reasons"]
    assert run["usable_for"] == "sft"


SCORES = [
    # As Inspect's own `value_to_float` has it; the range is known of letters and truth values.
    ("C", 1.0, 1.0),
    ("P", 0.5, 1.0),
    ("I", 0.0, 1.0),
    ("N", 0.0, 1.0),
    ("yes", 1.0, 1.0),
    (True, 1.0, 1.0),
    ("0.25", 0.25, None),
    (3, 3.0, None),
]


@pytest.mark.parametrize(("value", "number", "high"), SCORES)
def test_a_score_is_a_number(convert, value, number, high):
    """Letters, words, truth values, numbers and their texts."""
    tables = convert({"a.json": make_log(make_sample(scores={"match": {"value": value}}))}).tables
    assert tables["rewards"].select("value", "max").rows() == [(number, high)]


@pytest.mark.parametrize("value", ["good", float("nan"), None, "inf"])
def test_a_score_that_is_no_number_is_rejected(convert, reasons, value):
    """Nothing is guessed, and the run stays."""
    conversion = convert({"a.json": make_log(make_sample(scores={"match": {"value": value}}))})
    assert [reason for _, reason, _ in reasons(conversion)] == ["reward_value"]
    assert conversion.tables["trajectories"]["reward"].to_list() == [None]


def test_the_first_scorer_decides_over_the_run(convert):
    """Whatever the others' names are."""
    scores = {"b": {"value": 0.5}, "a": {"value": 1}, "c": {"value": 2}}
    tables = convert({"a.json": make_log(make_sample(scores=scores))}).tables
    assert tables["trajectories"]["reward"].to_list() == [0.5]


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"events": [3]}, "wrong type"),
        ({"events": [model([], SAYS, input_refs=[[0, 10**12]])]}, "a prompt of messages"),
        ({"scores": {"match": {}}}, "value is missing"),
        ({"events": [model(["x"], SAYS)]}, "wrong type"),
    ],
)
def test_a_broken_sample_is_rejected_and_its_neighbours_are_read(convert, reasons, fields, detail):
    """One malformed span, by the sample's id."""
    log = make_log(make_sample(id="good"), make_sample(id="bad", **fields))
    conversion = convert({"a.json": log, "b.eval": make_zip(log)})
    assert conversion.tables["trajectories"]["task_id"].to_list() == ["sums/good"]
    found = reasons(conversion)
    assert [(name, reason) for name, reason, _ in found] == [("sample bad", "malformed_span")] * 2
    assert all(detail in text for _, _, text in found)


def break_sample(data):
    """One byte of the first sample's packed data is another."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = archive.infolist()[1]
    at = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_sample_of_a_zip_is_counted_and_its_neighbours_are_read(convert, method):
    """Its checksum tells, or its data."""
    log = make_log(make_sample(), make_sample(epoch=2))
    conversion = convert({"a.eval": break_sample(make_zip(log, method=method))})
    assert conversion.accounting.damaged_records == 1
    assert conversion.tables["trajectories"]["attempt"].to_list() == [2]


def test_a_damaged_head_is_replaced_by_the_journals(convert):
    """Both say what was evaluated."""
    log = make_log(make_sample())
    stream = io.BytesIO(make_zip(log))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("_journal/start.json", json.dumps({"version": 2, "eval": log["eval"]}))
    with zipfile.ZipFile(stream) as archive:
        at = archive.getinfo("header.json").header_offset + 30 + len("header.json")
    data = stream.getvalue()
    conversion = convert({"a.eval": data[:at] + b"\xff" + data[at + 1 :]})
    assert conversion.accounting.damaged_records == 1
    assert conversion.tables["trajectories"]["policy_id"].to_list() == ["p/m"]


def test_a_zip_that_is_cut_is_damage(convert):
    """Its directory stands at the end; the other log is read."""
    log = make_log(make_sample())
    conversion = convert({"a.eval": make_zip(log)[:-30], "b.json": log})
    assert conversion.accounting.damaged_records == 1
    assert conversion.tables["trajectories"].height == 1


def test_another_zip_is_refused_by_name(convert):
    """An archive of something else."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(SourceError, match=r"no log of Inspect's: it holds no header.json"):
        convert({"a.eval": stream.getvalue()})


def test_a_log_without_samples_says_why_nothing_is_read(convert):
    """Only its head was kept."""
    log = make_log()
    del log["samples"]
    conversion = convert({"a.json": json.dumps(log, indent=2), "b.json": make_log(make_sample())})
    assert conversion.accounting.damaged_records == 1


def make_zstd_zip(log, *, truncated=False):
    """The zip with members of method 93, which Python's zipfile cannot write."""
    plain = make_zip(log, method=zipfile.ZIP_STORED)
    with zipfile.ZipFile(io.BytesIO(plain)) as archive:
        contents = {member.filename: archive.read(member) for member in archive.infolist()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            packed = zstandard.compress(content)
            packed = packed[:-9] if truncated and name.startswith("samples/") else packed
            archive.writestr(name, packed)
            member = archive.infolist()[-1]
            member.compress_type, member.file_size = 93, len(content)
            member.CRC = zipfile.crc32(content)
    return stream.getvalue()


def test_members_compressed_by_zstd_are_read(convert):
    """The method of newer logs; a cut one is counted."""
    log = make_log(make_sample(), make_sample(epoch=2))
    assert convert({"a.eval": make_zstd_zip(log)}).tables["trajectories"].height == 2
    conversion = convert({"a.eval": make_zstd_zip(log, truncated=True), "b.json": log})
    assert conversion.accounting.damaged_records == 2


def test_the_package_that_zstd_needs_is_named(convert, monkeypatch):
    """It is part of the extra `dataset`."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(SourceError, match=r"zstandard is missing; pip install 'starpo\[dataset\]'"):
        convert({"a.eval": make_zstd_zip(make_log(make_sample()))})
