"""LiteLLM's stream objects, which are their own iterators -> recorded, and still the same objects.

Their classes get recording `__next__`, `__anext__` and close methods when the first stream of a
class is seen; which call a stream belongs to is kept beside it, not on it.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from starpo_trace.capture.invocation import Call, finish_inner_streams
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.streams import ChunkAccumulator, StreamRecording
from starpo_trace.guard import Guard


class OuterRecording(StreamRecording):
    """A stream over a stream of an SDK, which may be recorded too."""

    def finish(self, outcome: Any, error: BaseException | None = None) -> None:
        """Finish the call, with what the SDK's stream has received so far."""
        if not self._is_finished:
            finish_inner_streams(self.call)
        super().finish(outcome, error)


class StreamWatch:
    """The streams that are being read."""

    def __init__(self, patches: PatchSet) -> None:
        self._patches = patches
        self._recordings: weakref.WeakKeyDictionary[Any, OuterRecording] = (
            weakref.WeakKeyDictionary()
        )

    def record(self, stream: Any, call: Call, accumulator: ChunkAccumulator) -> bool:
        """Record what is read from a stream; False when it is of a kind we do not know."""
        is_known = False
        wrappers = {
            "__next__": self._read,
            "__anext__": self._read_async,
            "close": self._close,
            "aclose": self._close_async,
        }
        for name, wrapper in wrappers.items():
            owner = next((each for each in type(stream).__mro__ if name in vars(each)), None)
            if owner is None or not owner.__module__.startswith("litellm."):
                continue
            is_known = is_known or name.endswith("next__")
            self._wrap(owner, name, wrapper)
        if is_known:
            self._recordings[stream] = OuterRecording(call, accumulator)
        return is_known

    def _wrap(self, owner: type, name: str, wrapper: Any) -> None:
        if getattr(vars(owner)[name], "_self_wrapper", None) == wrapper:
            return
        # A class made for one stream goes with it and need not be put back.
        patches = PatchSet() if "<locals>" in owner.__qualname__ else self._patches
        patches.wrap(owner, name, wrapper)

    def _read(
        self,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        recording = self._recordings.get(instance)
        if recording is None or recording.is_reading:
            return wrapped(*args, **kwargs)
        recording.is_reading = True
        try:
            chunk = wrapped(*args, **kwargs)
        except StopIteration:
            recording.finish("exhausted")
            raise
        except BaseException as error:
            recording.note_failure(error)
            raise
        finally:
            recording.is_reading = False
        recording.note_chunk(chunk)
        return chunk

    async def _read_async(
        self,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        recording = self._recordings.get(instance)
        if recording is None or recording.is_reading:
            return await wrapped(*args, **kwargs)
        recording.is_reading = True
        try:
            chunk = await wrapped(*args, **kwargs)
        except StopAsyncIteration:
            recording.finish("exhausted")
            raise
        except GeneratorExit:  # the reading coroutine itself was dropped
            recording.abandon()
            raise
        except BaseException as error:
            recording.note_failure(error)
            raise
        finally:
            recording.is_reading = False
        recording.note_chunk(chunk)
        return chunk

    def _close(
        self,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        self._note_close(instance)
        return wrapped(*args, **kwargs)

    async def _close_async(
        self,
        wrapped: Callable[..., Any],
        instance: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        self._note_close(instance)
        return await wrapped(*args, **kwargs)

    def _note_close(self, stream: Any) -> None:
        with Guard("noting that a stream was closed"):
            recording = self._recordings.get(stream)
            if recording is not None:
                recording.note_close()
