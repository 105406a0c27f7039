"""LiteLLM's stream objects, which are their own iterators -> recorded, and still the same objects.

Their classes get recording `__next__`, `__anext__` and close methods when the first stream of a
class is seen; which call a stream belongs to is kept beside it, not on it.
"""

import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Any, Final

from starpo_trace.capture.attachment import Attachment
from starpo_trace.capture.invocation import Call, finish_inner_streams
from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.streams import ChunkAccumulator, StreamRecording
from starpo_trace.guard import Guard

_read_recording: Final[ContextVar["OuterRecording | None"]] = ContextVar(
    "starpo_litellm_recording", default=None
)


def note_raw_chunk(
    wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Wrapper of LiteLLM's reading of a chunk, which leaves out what OpenAI does not have."""
    with Guard("reading a chunk of the wire"):
        chunk = kwargs["chunk"] if "chunk" in kwargs else args[0]
        recording = _read_recording.get()
        if recording is not None and chunk.get("prompt_token_ids") is not None:
            recording.prompt_token_ids = list(chunk["prompt_token_ids"])
    return wrapped(*args, **kwargs)


class OuterRecording(StreamRecording):
    """A stream over a stream of an SDK, which may be recorded too."""

    prompt_token_ids: list[int] | None = None
    """What the server sent of it, which LiteLLM's chunks lack."""

    def finish(self, outcome: Any, error: BaseException | None = None) -> None:
        """Finish the call, with what the SDK's stream has received so far."""
        if not self._is_finished:
            finish_inner_streams(self.call)
            if self.prompt_token_ids is not None:
                self.add({"prompt_token_ids": self.prompt_token_ids})
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
        mark = _read_recording.set(recording)
        attachment = Attachment(recording.call.context)  # a router may ask another server now
        try:
            chunk = wrapped(*args, **kwargs)
        except StopIteration:
            recording.finish("exhausted")
            raise
        except BaseException as error:
            recording.note_failure(error)
            raise
        finally:
            attachment.detach()
            recording.is_reading = False
            _reset(mark)
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
        mark = _read_recording.set(recording)
        attachment = Attachment(recording.call.context)
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
            attachment.detach()
            recording.is_reading = False
            _reset(mark)
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


def _reset(mark: Token[Any]) -> None:
    with suppress(ValueError):  # the reading coroutine was dropped, and closed elsewhere
        _read_recording.reset(mark)
