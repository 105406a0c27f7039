"""Methods that run agents and tools -> the same, recorded; however they give their result.

A wrapped method stays what it was: a function, a coroutine function, a generator. The Context of
the agent is current only while its own code runs, not while the program looks at what it yielded.
"""

import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import ModuleType, TracebackType
from typing import Any, TypeAlias

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from starpo_trace.capture.agents import Scope
from starpo_trace.capture.attachment import Attachment, Entry
from starpo_trace.capture.patches.base import MISSING, PatchSet, Wrapper
from starpo_trace.guard import Guard, handle_failure

Open: TypeAlias = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Scope | None]
"""Instance and arguments of a method -> the scope that begins; None: not recorded."""
Read: TypeAlias = Callable[[Any], Any]
"""What a method returned -> what is recorded as the result."""


def wrap_scope(
    patches: PatchSet, owner: Any, name: str, open_scope: Open, read: Read | None = None
) -> None:
    """Wrap a method by its kind, so that what it does is in the scope.

    Args:
        patches: where it is put back from.
        owner: its class; or the modules that share a function.
        name: its name there.
        open_scope: begins the scope of a call.
        read: what of its result is recorded; the default is the result itself.

    Raises:
        AttributeError: there is no such method (a framework we do not know).
    """
    owners = owner if isinstance(owner, list) else [owner]
    raw = vars(owners[0]).get(name, MISSING)
    function = getattr(owners[0], name) if raw is MISSING else getattr(raw, "__func__", raw)
    function = inspect.unwrap(function)
    if inspect.isasyncgenfunction(function):
        wrapper = _make_async_generator(open_scope)
    elif inspect.isgeneratorfunction(function):
        wrapper = _make_generator(open_scope)
    elif inspect.iscoroutinefunction(function):
        wrapper = _make_coroutine(open_scope, read)
    else:
        wrapper = _make_function(open_scope, read)
    if isinstance(owner, list):
        patches.wrap_shared(owners, name, wrapper)
    else:
        patches.wrap(owner, name, wrapper)


def wrap_context(patches: PatchSet, owner: Any, name: str, open_scope: Open) -> None:
    """Wrap a method that returns an async context manager, so that its block is in the scope.

    The scope begins where the block is entered and ends where it has been left, after what the
    framework does there; what the program does in the block is part of the scope.

    Raises:
        AttributeError: there is no such method (a framework we do not know).
    """

    def record(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        return _ScopedContext(
            wrapped(*args, **kwargs), lambda: _begin(open_scope, instance, args, kwargs)
        )

    patches.wrap(owner, name, record)


class _ScopedContext(AbstractAsyncContextManager[Any]):
    """An async context manager and the scope that is open while it is."""

    def __init__(
        self, manager: AbstractAsyncContextManager[Any], begin: Callable[[], Scope | None]
    ) -> None:
        self._manager = manager
        self._begin = begin
        self._opened: tuple[Scope, Entry] | None = None

    async def __aenter__(self) -> Any:
        scope = self._begin()
        if scope is not None:
            self._opened = scope, Entry(scope.context)
        try:
            return await self._manager.__aenter__()
        except BaseException as error:
            self._close(error)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            is_handled = await self._manager.__aexit__(kind, error, traceback)
        except BaseException as raised:
            self._close(raised)
            raise
        self._close(None if is_handled else error)
        return is_handled

    def _close(self, error: BaseException | None) -> None:
        if self._opened is not None:
            (scope, entry), self._opened = self._opened, None
            entry.leave()
            end_scope(scope, error)


class ContextScope:
    """Only a Context for what a framework does, and what is to be done once it has."""

    def __init__(self, context: Context, follow: Callable[[], None] | None = None) -> None:
        self.context = context
        self._follow = follow

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """Do what follows; nothing is recorded of it."""
        if self._follow is not None:
            self._follow()


class FollowedScope:
    """A scope, and what is to be done once it has ended."""

    def __init__(self, scope: Scope, follow: Callable[[], None]) -> None:
        self.context = scope.context
        self._scope = scope
        self._follow = follow

    def finish(self, error: BaseException | None, result: Any = None) -> None:
        """End it, and do what follows."""
        try:
            self._scope.finish(error, result)
        finally:
            self._follow()


def find_homes(function: Any, name: str, home: ModuleType) -> list[ModuleType]:
    """Modules that have a function under its name: its own first, then those that imported it."""
    return [
        home,
        *(
            module
            for module in list(sys.modules.values())
            if module is not home
            and type(module) is ModuleType
            and vars(module).get(name) is function
        ),
    ]


def _make_function(open_scope: Open, read: Read | None) -> Wrapper:
    def record(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        scope = _begin(open_scope, instance, args, kwargs)
        if scope is None:
            return wrapped(*args, **kwargs)
        attachment = Attachment(scope.context)
        try:
            result = wrapped(*args, **kwargs)
        except BaseException as error:
            attachment.detach()
            end_scope(scope, error)
            raise
        attachment.detach()
        if inspect.isawaitable(result):
            return _await_in(scope, result, read)
        if inspect.isasyncgen(result):
            return relay_async(scope, result)
        if inspect.isgenerator(result):
            return relay(scope, result)
        end_scope(scope, None, result, read)
        return result

    return record


def _make_coroutine(open_scope: Open, read: Read | None) -> Wrapper:
    async def record(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        scope = _begin(open_scope, instance, args, kwargs)
        if scope is None:
            return await wrapped(*args, **kwargs)
        return await _await_in(scope, wrapped(*args, **kwargs), read)

    return record


def _make_generator(open_scope: Open) -> Wrapper:
    def record(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        generator = wrapped(*args, **kwargs)
        return relay(lambda: _begin(open_scope, instance, args, kwargs), generator)

    return record


def _make_async_generator(open_scope: Open) -> Wrapper:
    def record(
        wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        generator = wrapped(*args, **kwargs)
        return relay_async(lambda: _begin(open_scope, instance, args, kwargs), generator)

    return record


async def _await_in(scope: Scope, awaitable: Any, read: Read | None) -> Any:
    attachment = Attachment(scope.context)
    try:
        result = await awaitable
    except BaseException as error:
        end_scope(scope, error)
        raise
    finally:
        attachment.detach()
    end_scope(scope, None, result, read)
    return result


def relay(scope: "Scope | Callable[[], Scope | None]", generator: Any) -> Iterator[Any]:
    """Generator -> the same, each of its steps in the scope, which begins with the first."""
    opened = scope() if callable(scope) else scope
    if opened is None:
        return (yield from generator)
    sent: Any = None
    step: Any = generator.send
    context = opened.context
    while True:
        attachment = Attachment(context)
        try:
            value = step(sent)
        except StopIteration as stop:
            end_scope(opened, None)
            return stop.value
        except BaseException as error:
            end_scope(opened, error)
            raise
        finally:
            context = otel_context.get_current()  # with what it has open, such as its own spans
            attachment.detach()
        step = generator.send
        try:
            sent = yield value
        except GeneratorExit:
            try:
                generator.close()
            finally:  # a generator may refuse to be closed (smolagents')
                end_scope(opened, None)  # the program has seen enough
            raise
        except BaseException as error:  # noqa: BLE001 (thrown in by the program, for the generator)
            step, sent = generator.throw, error


async def relay_async(
    scope: "Scope | Callable[[], Scope | None]", generator: Any
) -> AsyncIterator[Any]:
    """Async generator -> the same, each of its steps in the scope, which begins with the first."""
    opened = scope() if callable(scope) else scope
    sent: Any = None
    step: Any = generator.asend
    context = None if opened is None else opened.context
    while True:
        attachment = None if context is None else Attachment(context)
        try:
            value = await step(sent)
        except StopAsyncIteration:
            end_scope(opened, None)
            return
        except BaseException as error:
            end_scope(opened, error)
            raise
        finally:
            if attachment is not None:
                context = otel_context.get_current()  # with what it has open, such as its own spans
                attachment.detach()
        step = generator.asend
        try:
            sent = yield value
        except GeneratorExit:
            try:
                await generator.aclose()
            finally:
                end_scope(opened, None)
            raise
        except BaseException as error:  # noqa: BLE001 (thrown in by the program, for the generator)
            step, sent = generator.athrow, error


def _begin(
    open_scope: Open, instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Scope | None:
    try:  # a Guard, without its cost on every call
        return open_scope(instance, args, kwargs)
    except Exception as error:  # noqa: BLE001 (as in `Guard`)
        handle_failure("beginning an agent or a tool", error)
    return None


def end_scope(
    scope: Scope | None, error: BaseException | None, result: Any = None, read: Read | None = None
) -> None:
    """Finish a scope, if any; what telemetry gets wrong there is no failure of the program's."""
    if scope is None:
        return
    with Guard("ending an agent or a tool"):
        told = None
        if error is None and result is not None:
            with Guard("reading a tool's result"):
                told = result if read is None else read(result)
        scope.finish(error, told)
