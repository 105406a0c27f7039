"""Messages in files of their own: read where they may be, refused by name elsewhere."""

import json
import os
from pathlib import Path

import pytest

from starpo_trace.cli import main
from starpo_trace.convert.contentrefs import read_content_refs
from starpo_trace.convert.dataset import convert_rows, scan_table
from starpo_trace.convert.otlp import SpanRow

ASKED = [{"role": "user", "parts": [{"type": "text", "content": "how many?"}]}]
SAID = [{"role": "assistant", "parts": [{"type": "text", "content": "Three."}]}]
RULES = [{"type": "text", "content": "Be brief."}]
TOOLS = [{"type": "function", "name": "stock"}]
FILES = {
    "gen_ai.input.messages_ref": ("1_inputs", ASKED),
    "gen_ai.output.messages_ref": ("1_outputs", SAID),
    "gen_ai.system_instructions_ref": ("ab_system_instruction", RULES),
    "gen_ai.tool.definitions_ref": ("cd_tool.definitions", TOOLS),
}


def write_files(folder, form="jsonl"):
    """What the upload hook writes into a folder, and the attributes that name it."""
    folder.mkdir(exist_ok=True)
    attributes = {}
    for key, (name, items) in FILES.items():
        path = folder / f"{name}.{form}"
        if form == "json":
            path.write_text(json.dumps(items) + "\n")
        else:
            lines = [json.dumps({**item, "index": i}) + "\n" for i, item in enumerate(items)]
            path.write_text("".join(lines))
        attributes[key] = f"file://{path}"
    return attributes


def make_row(attributes, source, **fields):
    return SpanRow(
        source=str(source),
        trace_id=f"{1:032x}",
        span_id=f"{1:016x}",
        name="chat m",
        start_ns=1,
        end_ns=2,
        attributes={"gen_ai.operation.name": "chat", **attributes},
        **fields,
    )


def convert(row, folders=()):
    (read,) = read_content_refs([row], folders)
    tables = convert_rows([read])
    (run,) = tables["trajectories"].to_dicts()
    return tables, run["reasons"]


@pytest.mark.parametrize("form", ["json", "jsonl"])
@pytest.mark.parametrize("prefix", ["file://", ""])
def test_files_beside_the_source_are_read(tmp_path, form, prefix):
    """Both forms of the hook, as URLs and as paths; all four kinds of content."""
    attributes = write_files(tmp_path / "uploads", form)
    attributes = {k: v.replace("file://", prefix) for k, v in attributes.items()}
    tables, reasons = convert(make_row(attributes, tmp_path))
    assert tables["messages"].sort("depth")["role"].to_list() == ["system", "user", "assistant"]
    (turn,) = tables["turns"].to_dicts()
    assert (turn["text"], json.loads(turn["tool_definitions"])) == ("Three.", TOOLS)
    assert not any("ref" in reason for reason in reasons)


def test_names_in_an_event_are_read(tmp_path):
    """The hook marks the log record or event too."""
    attributes = write_files(tmp_path)
    event = ("gen_ai.client.inference.operation.details", 1, attributes)
    tables, _ = convert(make_row({}, tmp_path, events=(event,)))
    assert tables["turns"]["text"].to_list() == ["Three."]


def test_files_that_were_moved_are_found_in_an_allowed_folder(tmp_path):
    """By their names, wherever they were uploaded to; not without the user's word."""
    write_files(tmp_path / "fetched")
    attributes = {key: f"gs://bucket/a/{name}.jsonl" for key, (name, _) in FILES.items()}
    row = make_row(attributes, tmp_path / "elsewhere" / "traces.json")
    tables, _ = convert(row, [tmp_path / "fetched"])
    assert tables["turns"]["text"].to_list() == ["Three."]
    tables, reasons = convert(row)
    assert "content_ref_outside" in reasons
    assert tables["turns"]["text"].to_list() == [None]


def test_content_that_is_there_is_not_read_again(tmp_path):
    """The span's own messages win, and its file may be gone."""
    attributes = {
        "gen_ai.input.messages": json.dumps(ASKED),
        "gen_ai.input.messages_ref": f"file://{tmp_path}/gone.json",
    }
    _, reasons = convert(make_row(attributes, tmp_path))
    assert not any("ref" in reason for reason in reasons)


def outside(tmp_path):
    folder = tmp_path.parent / f"{tmp_path.name}-outside"
    folder.mkdir(exist_ok=True)
    secret = folder / "secret.json"
    secret.write_text(json.dumps(ASKED))
    return secret


def make_link(tmp_path):
    (tmp_path / "link.json").symlink_to(outside(tmp_path))
    return tmp_path / "link.json"


def make_loop(tmp_path):
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    return tmp_path / "loop.json"


def make_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    return tmp_path / "pipe.json"


def make_file(text):
    def make(tmp_path):
        path = tmp_path / "file.json"
        path.write_bytes(text)
        return path

    return make


def make_large(tmp_path):
    path = tmp_path / "large.json"
    with path.open("wb") as stream:
        stream.truncate((16 << 20) + 1)  # sparse
    return path


REFUSED = {
    "another folder": (outside, "content_ref_outside"),
    "a link out of the folder": (make_link, "content_ref_outside"),
    "a link to itself": (make_loop, ("content_ref_outside", "content_ref_missing")),
    "dots": (lambda tmp: f"{tmp}/../{outside(tmp).parent.name}/secret.json", "content_ref_outside"),
    "http": (lambda _: "http://127.0.0.1:9/a.json", "content_ref_outside"),
    "a host": (lambda tmp: f"file://host{tmp}/a.json", "content_ref_outside"),
    "a bucket": (lambda _: "gs://bucket/a.json", "content_ref_outside"),
    "relative": (lambda _: "a.json", "content_ref_outside"),
    "no text": (lambda _: 3, "content_ref_outside"),
    "NUL": (lambda tmp: f"{tmp}/a\0.json", "content_ref_outside"),
    "a name too long": (lambda tmp: f"{tmp}/{'a' * 5000}.json", "content_ref_missing"),
    "another kind of file": (lambda tmp: f"{tmp}/keys.txt", "content_ref_outside"),
    "missing": (lambda tmp: f"file://{tmp}/gone.json", "content_ref_missing"),
    "a folder": (lambda tmp: (tmp / "a.json").mkdir() or tmp / "a.json", "content_ref_missing"),
    "a pipe": (make_pipe, "content_ref_missing"),
    "no JSON": (make_file(b"{"), "content_ref_unreadable"),
    "no UTF-8": (make_file(b"\xff"), "content_ref_unreadable"),
    "no objects": (make_file(b"[1]"), "content_ref_unreadable"),
    "too deep": (make_file(b"[" * 100_000), "content_ref_unreadable"),
    "too large": (make_large, "content_ref_unreadable"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_has_a_reason(tmp_path, kind):
    """Paths that spans may not name, and files that hold no messages; never an error."""
    make, reason = REFUSED[kind]
    row = make_row({"gen_ai.input.messages_ref": str_or_odd(make(tmp_path))}, tmp_path)
    tables, reasons = convert(row)
    wanted = {reason} if isinstance(reason, str) else set(reason)
    assert wanted & set(reasons)
    assert tables["messages"].height == 0


def str_or_odd(value):
    return str(value) if isinstance(value, Path) else value


def test_a_run_that_lacks_a_file_is_not_for_rl(tmp_path):
    """The reason stands beside those the process noted itself."""
    row = make_row(
        {
            "gen_ai.output.messages_ref": f"file://{tmp_path}/gone.json",
            "starpo.usable_for.reasons": ["redacted"],
        },
        tmp_path,
    )
    _, reasons = convert(row)
    assert {"redacted", "content_ref_missing"} <= set(reasons)


def test_from_the_command_line(tmp_path):
    """`--content FOLDER` allows another folder."""
    attributes = write_files(tmp_path / "uploads")
    pairs = [{"key": k, "value": {"stringValue": v}} for k, v in attributes.items()]
    pairs.append({"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}})
    span = {"traceId": f"{1:032x}", "spanId": f"{1:016x}", "name": "chat", "attributes": pairs}
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "traces.json"
    source.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}))
    out = tmp_path / "out"
    for more, text in (([], None), (["--content", str(tmp_path / "uploads")], "Three.")):
        assert main(["export", str(source), "-o", str(out), *more]) == 0
        assert scan_table(out, "turns").collect()["text"].to_list() == [text]


def test_a_bucket_has_no_folder_on_the_disk(tmp_path, monkeypatch):
    """A folder that is called like its URL is none of it; one that is allowed is read."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "s3:" / "bucket" / "t"
    folder.mkdir(parents=True)
    row = make_row(write_files(folder), "s3://bucket/t")
    assert "content_ref_outside" in convert(row)[1]
    tables, reasons = convert(row, [folder])
    assert not any("ref" in reason for reason in reasons)
    assert tables["messages"].height > 0
