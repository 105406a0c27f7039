"""A generator that an SDK streams through -> a generator of the same type, recorded.

The program gets a real generator, so that its type, `send`, `throw` and `close` are what they
were. The SDK's own runs inside it and ends with it.
"""

import weakref
from collections.abc import AsyncGenerator, Generator
from typing import Any

from starpo_trace.capture.invocation import Call
from starpo_trace.capture.patches.streams import ChunkAccumulator, StreamRecording


class GeneratorRecording(StreamRecording):
    """A generator being read by the program."""

    relay: "weakref.ref[Any] | None" = None
    """The generator that the program holds."""

    def hand_out(self, relay: Any, generator: Any) -> None:
        """Name the generator that the program will hold after the SDK's, and remember it."""
        relay.__name__, relay.__qualname__ = generator.__name__, generator.__qualname__
        self.relay = weakref.ref(relay)

    def note_exit(self, error: GeneratorExit) -> None:
        """Finish the call because the generator was left at a `yield`.

        Python clears the weak references to an object before it finalizes it, which tells a
        generator that was dropped from one that was closed.
        """
        if self.relay is not None and self.relay() is None:
            self.abandon()
        elif error.__context__ is None or isinstance(error.__context__, Exception):
            self.finish("closed")
        else:  # closed on the way out of a cancelled task
            self.finish("cancelled")


def record_generator(
    generator: Generator[Any, Any, Any], call: Call, accumulator: ChunkAccumulator
) -> Generator[Any, Any, Any]:
    """Generator -> the generator to hand to the program."""
    recording = GeneratorRecording(call, accumulator)
    relay = _relay(generator, recording)
    recording.hand_out(relay, generator)
    return relay


def record_async_generator(
    generator: AsyncGenerator[Any, Any], call: Call, accumulator: ChunkAccumulator
) -> AsyncGenerator[Any, Any]:
    """Async generator -> the async generator to hand to the program."""
    recording = GeneratorRecording(call, accumulator)
    relay = _relay_async(generator, recording)
    recording.hand_out(relay, generator)
    return relay


def _relay(
    generator: Generator[Any, Any, Any], recording: GeneratorRecording
) -> Generator[Any, Any, Any]:
    sent: Any = None
    step: Any = generator.send
    while True:
        recording.is_reading = True
        try:
            chunk = step(sent)
        except StopIteration as stop:
            recording.finish("exhausted")
            return stop.value
        except BaseException as error:
            recording.note_failure(error)
            raise
        finally:
            recording.is_reading = False
        recording.note_chunk(chunk)
        step = generator.send
        try:
            sent = yield chunk
        except GeneratorExit as error:
            recording.note_exit(error)
            generator.close()
            raise
        except BaseException as error:  # noqa: BLE001 (thrown in by the program, for the SDK's)
            step, sent = generator.throw, error


async def _relay_async(
    generator: AsyncGenerator[Any, Any], recording: GeneratorRecording
) -> AsyncGenerator[Any, Any]:
    sent: Any = None
    step: Any = generator.asend
    while True:
        recording.is_reading = True
        try:
            chunk = await step(sent)
        except StopAsyncIteration:
            recording.finish("exhausted")
            return
        except GeneratorExit:  # the reading coroutine itself was dropped
            recording.abandon()
            raise
        except BaseException as error:
            recording.note_failure(error)
            raise
        finally:
            recording.is_reading = False
        recording.note_chunk(chunk)
        step = generator.asend
        try:
            sent = yield chunk
        except GeneratorExit as error:
            recording.note_exit(error)
            await generator.aclose()
            raise
        except BaseException as error:  # noqa: BLE001 (thrown in by the program, for the SDK's)
            step, sent = generator.athrow, error
