"""The testing kit: as docs/testing.md shows it, and as a plugin of a foreign project."""

import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest

import starpo_trace
from starpo_trace import semconv
from starpo_trace.testing import Reply, ScriptedServer, ToolRun, record_spans

ROOT = Path(__file__).parents[2]


def run_pytest(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_documented_test_passes(tmp_path):
    """The example in docs/testing.md, copied as it is, in a project of its own."""
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.S
    )
    (tmp_path / "test_example.py").write_text(example)
    done = run_pytest(tmp_path, "--strict-markers", "-W", "error")
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.slow
def test_the_plugin_loads_nothing_before_it_is_used(tmp_path):
    """A project that has Starpo installed and does not use it pays for one small module."""
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_other():\n"
        "    loaded = [m for m in sys.modules if m.startswith(('starpo_trace', 'opentelemetry'))]\n"
        "    assert sorted(loaded) == ['starpo_trace', 'starpo_trace.pytest_plugin']\n"
    )
    done = run_pytest(tmp_path)
    assert "1 passed" in done.stdout, done.stdout


def run_agent(server):
    with (
        openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client,
        starpo_trace.trajectory("shop", task_id="t1"),
    ):
        ask = [{"role": "user", "content": "hi"}]
        list(client.chat.completions.create(model="m", messages=ask, stream=True))
        with pytest.raises(KeyError), starpo_trace.step("tool", "stock", arguments="{}"):
            raise KeyError("A7")
        starpo_trace.reward(0.5, name="solved", source="environment")


def test_fixed_runs_are_equal_to_the_bit():
    """The same run twice gives the same ids, times and attributes."""
    exported = []
    with ScriptedServer([Reply(content="4", reasoning_content="hm")]) as server:
        for _ in range(2):
            with record_spans(is_fixed=True) as store:
                run_agent(server)
            exported.append([span.to_json() for span in store.spans])
    assert exported[0] == exported[1]
    assert [span.context.span_id for span in store.spans] == [2, 3, 4, 1]
    assert [(span.start_time, span.end_time) for span in store.spans][:2] == [
        (2_000_000_000, 3_000_000_000),
        (4_000_000_000, 5_000_000_000),
    ]


def test_the_tree_shows_errors_and_rewards():
    """Streams, failing tools and rewards in one text."""
    script = [Reply(content="4", reasoning_content="hm")]
    with ScriptedServer(script) as server, record_spans() as store:
        run_agent(server)
    assert store.render().splitlines() == [
        "shop: terminated",
        '  0 chat -> reasoning + "4"',
        "  1 stock({}) ! KeyError",
        "  solved = 0.5 (environment)",
    ]
    assert store.find_tool_runs("stock") == [
        ToolRun(name="stock", call_id=None, arguments="{}", result=None, error="KeyError")
    ]
    assert store.select("step", name="stock")[0][semconv.STEP] == 1


def test_the_tree_shows_arguments_that_are_no_text():
    """Some servers send an object where OpenAI sends JSON text."""
    call = {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": {"n": 1}}}
    script = [Reply(extra_message={"tool_calls": [call]})]
    with ScriptedServer(script) as server, record_spans() as store:
        run_agent(server)
    assert store.render().splitlines()[1] == '  0 chat -> stock({"n": 1})'


def test_an_instrumented_program_is_recorded_by_the_test(tmp_path):
    """`instrument()` at the program's import does not keep spans from the test."""
    starpo_trace.instrument(store=tmp_path / "store")
    with ScriptedServer([Reply(content="4")]) as server, record_spans() as store:
        starpo_trace.instrument(store=tmp_path / "store")
        run_agent(server)
    assert len(store.spans) == 4
    assert not (tmp_path / "store").exists()
