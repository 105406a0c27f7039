"""Agents with one part of Starpo broken after the other -> where they behaved otherwise.

    STARPO_DEBUG=0 python breaker.py URL STORE EXPECTED SHARE OF

EXPECTED is what `agents.py` prints without Starpo for `QUICK`. First every function of Starpo's that the agents
reach is found; then each is replaced by one that raises, and all agents play again. Printed is, for
each part whose failure was noticed, what was otherwise. SHARE OF splits the parts among processes.
"""

import contextlib
import inspect
import io
import logging
import sys
import threading
import types
from pathlib import Path

import agents
import openai  # noqa: F401 (imported before it is patched)

from starpo_trace.capture.switch import instrument, uninstrument

PACKAGES = ("starpo_trace.capture", "starpo_trace.privacy", "starpo_trace.store")
MODULES = ("starpo_trace.messages", "starpo_trace.mergepatch", "starpo_trace.limits")
QUICK = [name for name in agents.BY_NAME if name not in {"cancelled", "timeout", "retries"}]
DOORS = {
    # What the program itself calls or is handed; each guards what is behind it.
    "starpo_trace.capture.switch": ("instrument", "uninstrument"),
    "starpo_trace.capture.scopes": ("trajectory", "TrajectoryScope."),
    "starpo_trace.capture.episode": ("Trajectory.__init__", "Trajectory.end"),
    "starpo_trace.capture.history": ("History.__init__",),
    "starpo_trace.capture.steps": (
        "step",
        "state",
        "observe",
        "StepScope.",
        "Step.__init__",
        "Step.result",
    ),
    "starpo_trace.capture.rewards": ("reward",),
    # What stands in an SDK's place while the program reads a stream.
    "starpo_trace.capture.patches.streams": (
        *("RecordedAsyncIterator.", "StreamRecording.note_", "StreamRecording.finish"),
        "GeneratorRecording.note_close",
    ),
    # The guards around a call, and assignments.
    "starpo_trace.capture.patches.base": ("_end_call", "_note_failure"),
    "starpo_trace.capture.attachment": ("Attachment.", "OpenEntries.__init__"),
}
"""Parts that may not fail, module by module: an exact name, or its beginning if it ends in `.`/`_`."""


class Broken(Exception):
    """Raised in place of a part of Starpo's."""


def find_reached(play):
    """Code objects of Starpo's that run while `play()` does."""
    reached = set()

    def note(frame, event, _value):
        name = frame.f_globals.get("__name__", "")
        if event == "call" and name.startswith((*PACKAGES, *MODULES)):
            reached.add(frame.f_code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        play()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return reached


def list_parts(reached):
    """Functions and methods with this code: (name, owner, attribute, raw value)."""
    parts = []
    for module_name, module in sorted(sys.modules.items()):
        if not module_name.startswith((*PACKAGES, *MODULES)):
            continue
        for name, value in sorted(vars(module).items()):
            if isinstance(value, types.FunctionType) and value.__module__ == module_name:
                if value.__code__ in reached:
                    parts.append((f"{module_name}:{name}", module, name, value))
            elif isinstance(value, type) and value.__module__ == module_name:
                for attribute, raw in sorted(vars(value).items()):
                    function = raw.fget if isinstance(raw, property) else raw
                    function = getattr(function, "__func__", function)
                    if getattr(function, "__code__", None) in reached:
                        parts.append((f"{module_name}:{name}.{attribute}", value, attribute, raw))
    return [part for part in parts if not is_door(part[0])]


def is_door(name):
    module, _, attribute = name.partition(":")
    return any(
        attribute == door or (door[-1] in "._" and attribute.startswith(door))
        for door in DOORS.get(module, ())
    )


def make_broken(name, raw):
    def fail(*_args, **_kwargs):
        raise Broken(name)

    if isinstance(raw, property):
        return property(fail)
    if isinstance(raw, (staticmethod, classmethod)):
        return staticmethod(fail)
    if inspect.iscoroutinefunction(raw):

        async def fail_later(*_args, **_kwargs):
            raise Broken(name)

        return fail_later
    return fail


@contextlib.contextmanager
def broken(part):
    """Break a part, also where it was imported by name."""
    name, owner, attribute, raw = part
    places = [(owner, attribute)]
    if isinstance(owner, types.ModuleType):
        places += [
            (module, each)
            for key, module in list(sys.modules.items())
            if key.startswith("starpo_trace")
            for each, value in list(vars(module).items())
            if value is raw
        ]
    replacement = make_broken(name, raw)
    for place, each in places:
        setattr(place, each, replacement)
    try:
        yield
    finally:
        for place, each in places:
            setattr(place, each, raw)


def play_with(store, url, names, part=None):
    """Instrument, then play all agents with a part broken; what they printed."""
    instrument(store=store)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        with broken(part) if part is not None else contextlib.nullcontext():
            agents.play(url, names)
    uninstrument()
    return printed.getvalue()


def main():
    url, store, expected, share, of = sys.argv[1:]
    logger = logging.getLogger("starpo_trace")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    expectation = Path(expected).read_text()
    assert play_with(store, url, QUICK) == expectation
    reached = find_reached(lambda: play_with(store, url, QUICK))
    parts = list_parts(reached)
    mine = parts[int(share) :: int(of)]
    assert len(parts) > 200, len(parts)
    for part in mine:
        printed = play_with(store, url, QUICK, part)
        if printed != expectation:
            print("BROKEN", part[0])
            got, want = printed.splitlines(), expectation.splitlines()
            section = ""
            for line, wanted in zip(got, want, strict=False):
                section = wanted if wanted.startswith("==") else section
                if line != wanted:
                    print("   ", section, line[:160])
                    break
    print("parts", len(mine), "of", len(parts))


if __name__ == "__main__":
    main()
