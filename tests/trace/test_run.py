"""`starpo-trace run`: the same program, recorded."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from starpo_trace.launch import split_arguments
from starpo_trace.testing import Reply, ScriptedServer

pytestmark = pytest.mark.slow

AGENT = """
import sys
import openai
with openai.OpenAI(base_url=sys.argv[1], api_key="none") as client:
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
"""
LOOK = """
import os, signal, sys
print(__name__, __file__, __spec__ and __spec__.name, sys.modules["__main__"].__dict__ is globals())
print(sys.argv, sys.orig_argv[1:], sys.path)
print({name: os.environ.get(name) for name in ("PYTHONPATH", "SITE")})
print([name for name in os.environ if name.startswith("STARPO")])
print(signal.getsignal(signal.SIGINT), sys.flags.dev_mode)
"""


def run(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**read_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def run_both(folder, *arguments, **environment):
    """The program by Python alone, and by `starpo-trace run` without its children."""
    alone = run(folder, *arguments, **environment)
    ours = ["-m", "starpo_trace.cli", "run", "--no-children"]
    return alone, run(folder, *ours, *arguments, **environment)


def read_environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL")}


def outcome(done):
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("program", [["look.py"], ["./sub/look.py"], ["-m", "pack"]])
def test_a_program_sees_what_it_sees_without_us(tmp_path, program):
    """`__main__`, arguments, path, environment and its own `sitecustomize`."""
    for name in ("look.py", "sub/look.py", "pack/__main__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LOOK)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import os\nos.environ['SITE'] = 'own'\n")
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    alone, ours = run_both(tmp_path, *program, "-x", "--store", "y", PYTHONPATH=path)
    assert "'SITE': 'own'" in alone.stdout
    assert outcome(ours) == outcome(alone)


ENDINGS = {
    "exit code": "import sys; sys.exit(7)",
    "exit text": "import sys; sys.exit('gone')",
    "error": "def fail():\n    {}['x']\n\nfail()",
    "chain": "try:\n    1 / 0\nexcept Exception as e:\n    raise OSError('b') from e",
    "group": "raise ExceptionGroup('g', [ValueError('a'), OSError('b')])",
    "interrupt": "raise KeyboardInterrupt",
    "base": "class Stop(BaseException): pass\nraise Stop('now')",
    "syntax": "def f(:",
    "excepthook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0])\nraise ValueError",
    "os exit": "import os; os._exit(3)",
    "atexit": "import atexit; atexit.register(print, 'bye'); raise SystemExit",
    "pickle": "import pickle\nclass A: pass\nprint(pickle.dumps(A()))",
    "signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "thread": "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='t')\nt.start()",
}


@pytest.mark.parametrize("program", ENDINGS.values(), ids=ENDINGS)
def test_a_program_ends_as_it_ends_without_us(tmp_path, program):
    """Exit codes, signals, tracebacks and what is printed, to the byte."""
    (tmp_path / "app.py").write_text(program)
    alone, ours = run_both(tmp_path, "app.py")
    assert outcome(ours) == outcome(alone)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_the_program(tmp_path, number):
    """There is no process between the shell and the program."""
    (tmp_path / "app.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)")
    with subprocess.Popen(
        [sys.executable, "-m", "starpo_trace.cli", "run", "app.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(30) == -number


def count_spans(folder):
    """How many spans of model calls the store in a folder holds."""
    return sum(path.read_bytes().count(b"chat m") for path in folder.glob("*.otlp*"))


@pytest.mark.parametrize("program", [["agent.py"], ["-m", "agent"]])
def test_a_program_is_recorded(tmp_path, program):
    """A script and a module, into the store that is asked for."""
    (tmp_path / "agent.py").write_text(AGENT)
    with ScriptedServer([Reply(content="4")]) as server:
        ours = ["-m", "starpo_trace.cli", "run", "--store", "here"]
        done = run(tmp_path, *ours, *program, server.base_url)
    assert outcome(done) == (0, "", "")
    assert count_spans(tmp_path / "here") == 1


PARENT = """
import multiprocessing, os, subprocess, sys
def ask(url):
    sys.argv = ["agent.py", url]
    exec(open("agent.py").read())
if __name__ == "__main__":
    os.mkdir("elsewhere")
    subprocess.run([sys.executable, "../agent.py", sys.argv[1]], cwd="elsewhere", check=True)
    for method in ("spawn", "fork", "forkserver"):
        process = multiprocessing.get_context(method).Process(target=ask, args=(sys.argv[1],))
        process.start()
        process.join()
"""


@pytest.mark.parametrize(("flag", "num_spans"), [("--children", 4), ("--no-children", 1)])
def test_child_processes(tmp_path, flag, num_spans):
    """Pythons that the program starts are recorded into the same store, or only its forks are."""
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "parent.py").write_text(PARENT)
    with ScriptedServer([Reply(content="4")]) as server:
        ours = ["-m", "starpo_trace.cli", "run", flag, "--store", "here"]
        done = run(tmp_path, *ours, "parent.py", server.base_url)
        assert outcome(done) == (0, "", "")
        assert len(server.requests) == 4
    assert count_spans(tmp_path / "here") == num_spans


def test_what_cannot_be_recorded_runs(tmp_path):
    """An `instrument()` that raises is one line; the program is not stopped."""
    (tmp_path / "app.py").write_text("print('ran')")
    (tmp_path / "sitecustomize.py").write_text(
        "import starpo_trace.capture.switch as switch\n"
        "def instrument(**_): raise RuntimeError('broken on purpose')\n"
        "switch.instrument = instrument\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = run(tmp_path, "-m", "starpo_trace.cli", "run", "app.py", PYTHONPATH=path)
    assert outcome(done) == (
        0,
        "ran\n",
        "starpo-trace run: nothing is recorded: broken on purpose\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "nowhere.py: no such script"),
        ([], "name a script, or -m and a module"),
        (["-m"], "name a module"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    """What is missing, before anything runs."""
    done = run(tmp_path, "-m", "starpo_trace.cli", "run", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert message in done.stderr


def test_the_programs_arguments_are_its_own():
    """Options before the script are ours, whatever comes after it is not."""
    line = ["--store", "s", "--no-children", "-m", "pack", "--store", "x", "-h"]
    assert split_arguments(line) == (line[:3], line[3:])
    assert split_arguments(["--store=s", "app.py", "-m"]) == (["--store=s"], ["app.py", "-m"])


def test_the_boot_folder_holds_only_what_python_looks_for():
    """It comes first on the path of every program that is run: nothing else may be found there."""
    import starpo_trace.launch

    boot = Path(starpo_trace.launch.__file__).parent / "boot"
    assert [path.name for path in boot.glob("*.py")] == ["sitecustomize.py"]
