"""Methods that another library wraps too, before us, after us or on a class below."""

import pytest
import wrapt

from starpo_trace.capture.patches.base import PatchSet


def make_classes():
    class Base:
        def ask(self):
            return "answer"

    class Client(Base):
        pass

    class Own(Base):
        def ask(self):
            return f"own {super().ask()}"

    return Base, Client, Own


def note(name, notes):
    def record(wrapped, _instance, args, kwargs):
        notes.append(name)
        return wrapped(*args, **kwargs)

    return record


def wrap_theirs(owner, notes):
    """As instrumentations do: the method as it is found there, on that class."""
    setattr(owner, "ask", wrapt.FunctionWrapper(owner.ask, note("theirs", notes)))  # noqa: B010


def ask(owner, notes):
    notes.clear()
    assert owner().ask() in ("answer", "own answer")
    return list(notes)


def test_wrapped_before_us_on_a_class_below():
    """There it has the method as it was before us (OpenInference on `OpenAI.request`)."""
    base, client, own = make_classes()
    notes, patches = [], PatchSet()
    wrap_theirs(client, notes)
    theirs = vars(client)["ask"]
    patches.wrap(base, "ask", note("ours", notes))
    assert ask(client, notes) == ["ours", "theirs"]
    assert ask(base, notes) == ["ours"]
    assert ask(own, notes) == ["ours"]  # its own calls the one above
    patches.restore()
    assert vars(client)["ask"] is theirs
    assert ask(client, notes) == ["theirs"]
    assert ask(base, notes) == []


@pytest.mark.parametrize("where", [0, 1])
def test_wrapped_after_us_and_ours_comes_back(where, caplog):
    """What stayed inside of theirs records again; a second one would record twice."""
    classes = make_classes()
    base, client, _ = classes
    notes, patches = [], PatchSet()
    patches.wrap(base, "ask", note("ours", notes))
    wrap_theirs(classes[where], notes)
    assert ask(client, notes) == ["theirs", "ours"]
    patches.restore()
    assert len(caplog.records) == (where == 0)
    patches.wrap(base, "ask", note("ours", notes))
    assert ask(client, notes) == ["theirs", "ours"]
    assert ask(base, notes) == (["theirs", "ours"] if where == 0 else ["ours"])


def test_theirs_is_taken_away_in_its_turn():
    """Last on, first off: ours stays."""
    base, client, _ = make_classes()
    notes, patches = [], PatchSet()
    patches.wrap(base, "ask", note("ours", notes))
    before = client.ask
    wrap_theirs(client, notes)
    client.ask = before
    assert ask(client, notes) == ["ours"]
    patches.restore()
    patches.wrap(base, "ask", note("ours", notes))
    assert ask(client, notes) == ["ours"]
