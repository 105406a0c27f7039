"""What importing the packages may load."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "polars", "numpy", "deltalake", "openai", "rich")


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_tracer_loads_nothing_heavy():
    """A production agent that imports starpo_trace pays for no data or training library."""
    assert [name for name in HEAVY if name in modules_after("import starpo_trace")] == []


def test_instrumenting_loads_nothing_heavy():
    """instrument() waits for the provider's SDK to be imported instead of importing it."""
    loaded = modules_after("import starpo_trace; starpo_trace.instrument()")
    assert [name for name in HEAVY if name in loaded] == []


def test_rules_for_secrets_are_loaded_by_the_first_text():
    """No regular expression of redaction is compiled before there is something to search."""
    for options in ("", "redaction=False"):
        loaded = modules_after(f"import starpo_trace; starpo_trace.instrument({options})")
        privacy = {name for name in loaded if name.startswith("starpo_trace.privacy.")}
        assert privacy <= {"starpo_trace.privacy.build", "starpo_trace.privacy.redaction"}


def test_importing_the_trainer_loads_no_tracer_and_no_torch():
    """`import starpo_train` is cheap and reaches the tracer only where rollouts need it."""
    loaded = modules_after("import starpo_train")
    assert [name for name in ("torch", "transformers", "starpo_trace") if name in loaded] == []
