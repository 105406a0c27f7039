"""Wrapping attributes so that they can be put back exactly as they were."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import wrapt
from opentelemetry import context as otel_context

from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.runtime import get_runtime
from starpo_trace.guard import Guard, handle_failure, warn_once

if TYPE_CHECKING:
    from starpo_trace.capture.invocation import Call

MISSING: Final = object()
_MAX_WRAPPED: Final = 32

_T = TypeVar("_T")

Begin: TypeAlias = "Callable[[Any, tuple[Any, ...], Mapping[str, Any]], tuple[Call, _T] | None]"
"""Instance and arguments -> the call that begins, and what its end needs to know; None: not ours."""
End: TypeAlias = "Callable[[Call, _T, Any], Any]"
"""Call, what `Begin` noted, and the result -> the result to hand to the program.

It finishes the call, or hands it to the stream that will.
"""
Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One wrapped attribute."""

    owner: Any
    """Class or module that has it."""
    name: str
    """Attribute name."""
    raw: Any
    """`vars(owner)` value before, or MISSING when it was inherited."""
    replacement: Any
    """What stands there now."""


class _BoundFunction(wrapt.BoundFunctionWrapper):
    """A patched method of an object: copied and pickled as bound methods are.

    Or, asked of the class, the function itself.
    """

    def __copy__(self) -> Any:
        if self._self_instance is None:
            return self
        return getattr(self._self_instance, self.__name__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._self_instance is None:
            return self
        return getattr(copy.deepcopy(self._self_instance, memo), self.__name__)

    def __reduce__(self) -> Any:
        if self._self_instance is None:
            return _find_by_name(self)
        return getattr, (self._self_instance, self.__name__)

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return self.__reduce__()


class _Function(wrapt.FunctionWrapper):
    """A patched function: copied as itself and pickled by name, as functions are."""

    __bound_function_wrapper__ = _BoundFunction

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> Any:
        return self

    def __reduce__(self) -> Any:
        return _find_by_name(self)

    def __reduce_ex__(self, _protocol: Any) -> Any:
        return self.__reduce__()


def _find_by_name(function: Any) -> Any:
    """What pickle needs to find a function again."""
    import pkgutil

    return pkgutil.resolve_name, (f"{function.__module__}:{function.__qualname__}",)


def _list_wrapped(function: Any) -> list[Any]:
    """A function, what it wraps, and so on; the last one wraps nothing."""
    found: list[Any] = []
    while function is not MISSING and len(found) < _MAX_WRAPPED:
        found.append(getattr(function, "__func__", function))
        function = getattr(found[-1], "__wrapped__", MISSING)
    return found


def _has_ours(wrapped: Sequence[Any]) -> bool:
    return any(isinstance(each, _Function | _BoundFunction) for each in wrapped)


def _find_wrapped_below(owner: Any, name: str, function: Any) -> list[type]:
    """Classes below one whose method is its function, wrapped by others but not by us."""
    found: list[type] = []
    waiting = type.__subclasses__(owner) if isinstance(owner, type) else []
    for below in waiting:  # grows while it is read
        waiting += [each for each in type.__subclasses__(below) if each not in waiting]
        wrapped = _list_wrapped(vars(below)[name]) if name in vars(below) else [None]
        if wrapped[-1] is function and not _has_ours(wrapped):
            found.append(below)
    return found


class PatchSet:
    """Patches that are put back together."""

    def __init__(self) -> None:
        self._patches: list[Patch] = []
        self._left: list[Patch] = []
        """Wrapped by somebody else when they were to be put back: they are there still."""

    def wrap(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        """Wrap `owner.name`; `wrapper(wrapped, instance, args, kwargs)` is called instead.

        Who wrapped it before us on a class below has the function as it was; it is wrapped there, too.

        Raises:
            AttributeError: there is no such attribute (an SDK we do not know).
        """
        raw = vars(owner).get(name, MISSING)
        original = getattr(owner, name) if raw is MISSING else raw
        if self._is_left(owner, name, original):
            return  # it records again
        for below in _find_wrapped_below(owner, name, _list_wrapped(original)[-1]):
            self._replace(below, name, vars(below)[name], wrapper)
        self._replace(owner, name, raw, wrapper)

    def _is_left(self, owner: Any, name: str, function: Any) -> bool:
        is_known = any(each.owner is owner and each.name == name for each in self._left)
        return is_known and _has_ours(_list_wrapped(function))

    def _replace(self, owner: Any, name: str, raw: Any, wrapper: Wrapper) -> None:
        original = getattr(owner, name) if raw is MISSING else raw
        # Positionally: wrapt 2 renamed the parameters.
        replacement = _Function(original, wrapper)
        setattr(owner, name, replacement)
        self._patches.append(Patch(owner=owner, name=name, raw=raw, replacement=replacement))

    def wrap_shared(self, owners: Sequence[Any], name: str, wrapper: Wrapper) -> None:
        """Wrap an attribute that several modules share, so that they share the wrapped one.

        Raises:
            AttributeError: there is no such attribute (an SDK we do not know).
        """
        replacement = _Function(getattr(owners[0], name), wrapper)
        for owner in owners:
            raw = vars(owner)[name]
            setattr(owner, name, replacement)
            self._patches.append(Patch(owner=owner, name=name, raw=raw, replacement=replacement))

    def restore(self) -> None:
        """Put every attribute back, the last first."""
        while self._patches:
            patch = self._patches.pop()
            if vars(patch.owner).get(patch.name, MISSING) is not patch.replacement:
                # Somebody wrapped ours; taking theirs away would break them, and ours passes
                # calls through while Starpo is off.
                self._left.append(patch)
                warn_once(
                    f"restore {patch.owner}.{patch.name}",
                    "%r.%s was patched again after Starpo and stays so",
                    patch.owner,
                    patch.name,
                )
            elif patch.raw is MISSING:
                delattr(patch.owner, patch.name)
            else:
                setattr(patch.owner, patch.name, patch.raw)


def make_recorder(begin: "Begin[_T]", end: "End[_T]") -> Wrapper:
    """Wrapper of a function that calls a model; its result and its exceptions pass unchanged."""

    def record(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        begun = None
        try:  # a Guard, without its cost on every call
            begun = begin(instance, args, kwargs)
        except Exception as error:  # noqa: BLE001 (as in `Guard`)
            handle_failure("beginning a model call", error)
        if begun is None:
            return wrapped(*args, **kwargs)
        call, note = begun
        token = otel_context.attach(call.context)  # and detached in the same Context
        try:
            result = wrapped(*args, **kwargs)
        except BaseException as error:
            _note_failure(call, error)
            raise
        finally:
            otel_context.detach(token)
        return _end_call(end, call, note, result)

    return record


def make_async_recorder(begin: "Begin[_T]", end: "End[_T]") -> Wrapper:
    """Wrapper of a coroutine function that calls a model."""

    async def record(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        begun = None
        try:  # a Guard, without its cost on every call
            begun = begin(instance, args, kwargs)
        except Exception as error:  # noqa: BLE001 (as in `Guard`)
            handle_failure("beginning a model call", error)
        if begun is None:
            return await wrapped(*args, **kwargs)
        call, note = begun
        attachment = Attachment(call.context)
        try:
            result = await wrapped(*args, **kwargs)
        except BaseException as error:
            _note_failure(call, error)
            raise
        finally:
            attachment.detach()
        return _end_call(end, call, note, result)

    return record


def load_at_first_call(
    load: "Callable[[], tuple[Begin[_T], End[_T]]]",
) -> "tuple[Begin[_T], End[_T]]":
    """Steps of a recorder whose modules the first call imports, so that `instrument()` is quick."""
    steps: tuple[Begin[_T], End[_T]] | None = None

    def begin(
        instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> "tuple[Call, _T] | None":
        nonlocal steps
        if steps is None:
            runtime = get_runtime()
            if runtime is None:
                return None
            steps = runtime.load(load)
        return steps[0](instance, args, kwargs)

    def end(call: "Call", note: _T, result: Any) -> Any:
        return result if steps is None else steps[1](call, note, result)

    return begin, end


def _note_failure(call: "Call", error: BaseException) -> None:
    with Guard("ending a model call that failed"):
        call.fail(error)


def _end_call(end: "End[_T]", call: "Call", note: _T, result: Any) -> Any:
    try:
        return end(call, note, result)
    except Exception as error:  # noqa: BLE001 (as in `Guard`)
        with Guard("ending a model call whose answer cannot be read"):
            from starpo_trace.capture.exchange import LLMResponse

            call.finish(LLMResponse(is_unread=True))
        handle_failure("reading a model's answer", error)
    return result
