"""Prompts -> what is new in them, as span attributes.

An agent sends its whole history with every call. In delta mode a call's span holds only the
messages after the longest prefix that an earlier span of the same trajectory already holds, and
the chain hash of that prefix. Messages are hashed afresh from the wire each time, so an agent that
edits its history in place is noticed: the chain no longer matches from the edit on.
"""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.util.types import AttributeValue

from starpo_trace import semconv
from starpo_trace.config import HistoryMode
from starpo_trace.messages import (
    Message,
    chain_hashes,
    dump_identity,
    dump_json,
    extend_chain,
    hash_link,
)

_MAX_TAIL: Final = 6
"""How many latest histories a resumed run can continue."""
_MAX_TOKEN_BASES: Final = 4
"""How many earlier calls a prompt's token ids are compared with (parallel branches)."""


@dataclass(slots=True, kw_only=True)  # not frozen: made on every call
class Prompt:
    """A history, described for a span and for the calls that will extend it."""

    attributes: Mapping[str, AttributeValue]
    """Attributes of the span."""
    chains: Sequence[bytes]
    """Chain hash after each message; empty when nothing may be recorded."""
    has_base: bool = False
    """Whether it continues an answer of which the server, not the program, keeps the history."""
    num_messages: int = 0
    """Length of the whole history, as far as it is known."""


class History:
    """What the spans of one trajectory already hold."""

    def __init__(self) -> None:
        self._chains: set[bytes] = set()
        self._responses: dict[str, tuple[bytes, int]] = {}
        self._tail: deque[tuple[bytes, int, str | None]] = deque(maxlen=_MAX_TAIL)
        self._token_bases: deque[tuple[int, list[int]]] = deque(maxlen=_MAX_TOKEN_BASES)
        self._latest: list[tuple[bytes, bytes]] = []
        self._latest_base = b""
        self._lock = threading.RLock()

    def after_fork_in_child(self) -> None:
        """Replace the lock, which a thread of the parent may hold."""
        self._lock = threading.RLock()

    def describe_prompt(
        self,
        messages: Sequence[Message],
        mode: HistoryMode,
        *,
        previous_response_id: str | None = None,
    ) -> Prompt:
        """Messages of a prompt -> attributes that hold what is new.

        With `previous_response_id` the messages continue that answer, and the server has the rest.
        """
        if mode == "off":
            return describe_lone_prompt(messages, mode)
        base, num_before = b"", 0
        if previous_response_id is not None:
            base, num_before = self._responses.get(previous_response_id, (b"", 0))
        chains = self._hash_chain(messages, base)
        num_known = self._count_known(chains) if mode == "delta" else 0
        return _describe(messages, mode, chains, num_known, base, num_before)

    def _hash_chain(self, messages: Sequence[Message], base: bytes) -> list[bytes]:
        """`chain_hashes`, without hashing again what the prompt before began with.

        Each message is still dumped and compared as a whole, so an edit in place is seen.
        """
        latest, latest_base = self._latest, self._latest_base
        links: list[tuple[bytes, bytes]] = []
        chain, is_same = base, base == latest_base
        for position, message in enumerate(messages):
            identity = dump_identity(message)
            if is_same and position < len(latest) and latest[position][0] == identity:
                link = latest[position]
                chain = link[1]
            else:
                is_same = False
                chain = hash_link(chain, identity)
                link = (identity, chain)
            links.append(link)
        self._latest, self._latest_base = links, base
        return [link[1] for link in links]

    def learn_prompt(
        self, prompt: Prompt, answer: Message | None = None, *, response_id: str | None = None
    ) -> None:
        """Remember what a span that has ended holds: its prompt and the answer to it."""
        with self._lock:
            self._chains.update(prompt.chains)
            if prompt.chains:
                self._tail.append((prompt.chains[-1], prompt.num_messages, None))
            if answer is not None:
                chain = extend_chain(prompt.chains[-1] if prompt.chains else b"", answer)
                self._chains.add(chain)
                self._tail.append((chain, prompt.num_messages + 1, response_id))
                if response_id is not None:
                    self._responses[response_id] = (chain, prompt.num_messages + 1)

    def read_tail(self) -> list[list[str | int | None]]:
        """Ends of the latest histories: chain hash, length, the server's id of the answer."""
        with self._lock:
            return [[chain.hex(), length, response] for chain, length, response in self._tail]

    def restore_tail(self, tail: Sequence[Sequence[str | int | None]]) -> None:
        """Take the ends of another process's histories for known.

        Raises:
            ValueError, TypeError: they are not what `read_tail` gave.
        """
        for text, length, response in tail:
            end = (
                bytes.fromhex(str(text)),
                int(length or 0),
                None if response is None else str(response),
            )
            with self._lock:
                self._chains.add(end[0])
                self._tail.append(end)
                if end[2] is not None:
                    self._responses[end[2]] = (end[0], end[1])

    def describe_tokens(
        self,
        step: int,
        prompt_ids: list[int],
        response_ids: list[int],
        mode: HistoryMode,
    ) -> dict[str, AttributeValue]:
        """Prompt ids of the call `step` -> attributes that hold what is new; remembers them."""
        attributes: dict[str, AttributeValue] = {}
        with self._lock:
            base_step, base_length = -1, 0
            for earlier_step, earlier_ids in self._token_bases if mode == "delta" else ():
                length = count_common_prefix(earlier_ids, prompt_ids)
                if length and length >= base_length:
                    base_step, base_length = earlier_step, length
            self._token_bases.append((step, prompt_ids + response_ids))
        if base_length:
            attributes[semconv.PROMPT_TOKEN_IDS_BASE_STEP] = base_step
            attributes[semconv.PROMPT_TOKEN_IDS_BASE_LENGTH] = base_length
        attributes[semconv.PROMPT_TOKEN_IDS] = dump_json(prompt_ids[base_length:])
        return attributes

    def _count_known(self, chains: Sequence[bytes]) -> int:
        with self._lock:
            for num_known in range(len(chains), 0, -1):
                if chains[num_known - 1] in self._chains:
                    return num_known
        return 0


def describe_lone_prompt(messages: Sequence[Message], mode: HistoryMode) -> Prompt:
    """Messages of a prompt that belongs to no trajectory -> attributes that hold all of them."""
    if mode == "off":
        return Prompt(attributes={semconv.HISTORY_MODE: "off"}, chains=())
    return _describe(messages, mode, chain_hashes(messages), 0, b"", 0)


def _describe(
    messages: Sequence[Message],
    mode: HistoryMode,
    chains: list[bytes],
    num_known: int,
    base: bytes,
    num_before: int,
) -> Prompt:
    num_messages = num_before + len(messages)
    attributes: dict[str, AttributeValue] = {
        semconv.HISTORY_MODE: mode,
        semconv.HISTORY_LENGTH: num_messages,
    }
    if chains:
        attributes[semconv.HISTORY_HASH] = chains[-1].hex()
    if num_known or num_before:
        attributes[semconv.HISTORY_BASE] = (chains[num_known - 1] if num_known else base).hex()
        attributes[semconv.HISTORY_BASE_LENGTH] = num_before + num_known
    attributes[semconv.INPUT_MESSAGES] = dump_json(messages[num_known:] if num_known else messages)
    return Prompt(
        attributes=attributes,
        chains=chains or ([base] if base else []),
        has_base=bool(base),
        num_messages=num_messages,
    )


def count_common_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of the longest common prefix, by halving, so that C compares the slices.

    Example: `count_common_prefix([1, 2, 3], [1, 2, 9, 9]) == 2`.
    """
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
