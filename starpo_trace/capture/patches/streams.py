"""A stream being read -> one finished call, however the reading ends.

The SDK's stream object stays what it is; only the iterator inside it is replaced by one that
notes each chunk. Reading ends in one of five ways, and the first that happens counts: `exhausted`,
`error` and `cancelled` are seen while reading, `closed` through the response's close method, and
`dropped` when the stream is collected, or still open at its trajectory's end. An answer that has
said that it ends was read to its end, whatever of the stream is left.
"""

import sys
import weakref
from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any, Protocol, cast

from starpo_trace.capture.exchange import LLMResponse, StreamOutcome
from starpo_trace.capture.invocation import Call, watch_stream
from starpo_trace.guard import Guard, handle_failure

if TYPE_CHECKING:
    from types import GeneratorType


class ChunkAccumulator(Protocol):
    """Puts the chunks of one provider's streams together."""

    def add(self, chunk: Any) -> None:
        """Take one chunk in."""
        ...

    def build_response(self) -> LLMResponse:
        """What was received so far."""
        ...


class StreamRecording:
    """What the readers of both kinds of streams have in common."""

    _is_finished = True  # of one that could not even begin

    def __init__(self, call: Call, accumulator: ChunkAccumulator) -> None:
        self.call = call
        self.is_reading = False
        """Whether the SDK's own code runs, which also closes the response when it is done."""
        self._accumulator = accumulator
        self.add = accumulator.add
        """Takes one chunk in; the program may change the chunk afterwards."""
        self._has_chunk = False
        self._is_finished = False
        watch_stream(self)

    def note_chunk(self, chunk: Any) -> None:
        """Take one chunk in, after the program's read and before it sees the chunk."""
        with Guard("recording a chunk"):
            if not self._has_chunk:
                self._has_chunk = True
                if self.call.is_stream:  # a body read piece by piece is no stream of chunks
                    self.call.note_first_chunk()
            self.add(chunk)

    def finish(self, outcome: StreamOutcome | None, error: BaseException | None = None) -> None:
        """Finish the call; only the first time counts. No outcome: it was no stream of chunks."""
        if self._is_finished:
            return
        self._is_finished = True
        with Guard("ending a stream"):
            response = LLMResponse()
            with Guard("assembling a streamed answer"):
                response = self._accumulator.build_response()
            if outcome in {"closed", "dropped"} and _is_said_to_end(response):
                outcome = "exhausted"  # many leave at the event that says so
            self.call.finish(response, error=error, outcome=outcome)

    def note_failure(self, error: BaseException) -> None:
        """Finish the call after a read that raised."""
        self.finish("error" if isinstance(error, Exception) else "cancelled", error)

    def note_close(self) -> None:
        """Finish the call because the program closed the stream before its end."""
        if self.is_reading:
            return
        leaving = sys.exc_info()[1]  # what a `with` block or a generator is being left by
        if isinstance(leaving, GeneratorExit):  # the SDK's generator, collected unfinished
            self.abandon()
        elif leaving is None or isinstance(leaving, Exception):
            self.finish("closed")
        else:
            self.finish("cancelled")

    def abandon(self) -> None:
        """Finish the call because nobody will read on."""
        self.finish("dropped")

    def __del__(self) -> None:
        if not self._is_finished and not sys.is_finalizing():
            self.abandon()


def _is_said_to_end(response: LLMResponse) -> bool:
    """Whether each answer has said why it ends."""
    return max(1, len(response.messages)) <= len(response.finish_reasons)


class GeneratorRecording(StreamRecording):
    """A synchronous stream whose chunks pass through `record_chunks`."""

    _chunks: "weakref.ref[GeneratorType[Any, None, None]] | None" = None

    def record(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Stand-in for the iterator; whoever drops it has dropped the stream."""
        chunks = cast("GeneratorType[Any, None, None]", _record_chunks(iterator, self))
        self._chunks = weakref.ref(chunks)
        return chunks

    def note_close(self) -> None:
        """Finish the call, unless it is the SDK that closes what it has read to the end."""
        chunks = None if self._chunks is None else self._chunks()
        if chunks is None or not chunks.gi_running:
            super().note_close()


def _record_chunks(
    iterator: Iterator[Any], recording: GeneratorRecording
) -> Generator[Any, None, None]:
    """Pass the chunks on, each once it is taken in.

    A generator, because to resume one costs a fraction of a call of a `__next__` in Python.
    """
    try:
        for chunk in iterator:
            recording.note_chunk(chunk)
            yield chunk
            break
        add = recording.add
        for chunk in iterator:
            try:
                add(chunk)
            except Exception as error:  # noqa: BLE001 (as in `Guard`)
                handle_failure("recording a chunk", error)
            yield chunk
    except GeneratorExit:
        recording.abandon()
        raise
    except BaseException as error:
        recording.note_failure(error)
        raise
    recording.finish("exhausted")


class RecordedIterator(StreamRecording):
    """Stands in for the iterator of a synchronous stream."""

    def __init__(self, iterator: Iterator[Any], call: Call, accumulator: ChunkAccumulator) -> None:
        super().__init__(call, accumulator)
        self._iterator = iterator

    def __iter__(self) -> "RecordedIterator":
        return self

    def __next__(self) -> Any:
        self.is_reading = True
        try:
            chunk = next(self._iterator)
        except StopIteration:
            self.finish("exhausted")
            raise
        except BaseException as error:
            self.note_failure(error)
            raise
        finally:
            self.is_reading = False
        self.note_chunk(chunk)
        return chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)  # send, throw, close of a generator


class RecordedAsyncIterator(StreamRecording):
    """Stands in for the iterator of an asynchronous stream."""

    def __init__(
        self, iterator: AsyncIterator[Any], call: Call, accumulator: ChunkAccumulator
    ) -> None:
        super().__init__(call, accumulator)
        self._iterator = iterator

    def __aiter__(self) -> "RecordedAsyncIterator":
        return self

    async def __anext__(self) -> Any:
        self.is_reading = True
        try:
            chunk = await anext(self._iterator)
        except StopAsyncIteration:
            self.finish("exhausted")
            raise
        except GeneratorExit:  # the reading coroutine itself was dropped
            self.abandon()
            raise
        except BaseException as error:
            self.note_failure(error)
            raise
        finally:
            self.is_reading = False
        self.note_chunk(chunk)
        return chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)  # asend, athrow, aclose of a generator


def record_stream(
    stream: Any, call: Call, accumulator: ChunkAccumulator, *, name: str = "_iterator"
) -> bool:
    """Record what is read from an SDK's stream; False when it is of a kind we do not know.

    `name` is the attribute of the stream that holds the iterator it reads from.
    """
    iterator: Any = getattr(stream, name, None)
    response: Any = getattr(stream, "response", None)
    if hasattr(iterator, "__anext__"):
        recording = RecordedAsyncIterator(iterator, call, accumulator)
        setattr(stream, name, recording)
        _hook_async_close(response, recording)
    elif hasattr(iterator, "__next__"):
        recording = GeneratorRecording(call, accumulator)
        setattr(stream, name, recording.record(iterator))
        _hook_close(response, recording)
    else:
        return False
    return True


def _hook_close(response: Any, recording: StreamRecording) -> None:
    close = response.close
    watched = weakref.ref(recording)  # a stream that is dropped is freed at once, as without us

    def close_recorded(*args: Any, **kwargs: Any) -> Any:
        reading = watched()
        if reading is not None:
            reading.note_close()
        return close(*args, **kwargs)

    response.close = close_recorded


def _hook_async_close(response: Any, recording: StreamRecording) -> None:
    aclose = response.aclose
    watched = weakref.ref(recording)

    async def aclose_recorded(*args: Any, **kwargs: Any) -> Any:
        reading = watched()
        if reading is not None:
            reading.note_close()
        return await aclose(*args, **kwargs)

    response.aclose = aclose_recorded
