"""Item -> JudgeScore: shown as data, asked once per pin and content, read strictly."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from starpo_train.errors import JudgeError
from starpo_train.judge.answers import parse_answer
from starpo_train.judge.endpoint import Answer, Client, Endpoint, PassingFailureError, RefusedError
from starpo_train.judge.framing import build_messages, draw_mark, hash_prompt, render_parts
from starpo_train.judge.neutralise import neutralise
from starpo_train.judge.patience import Clock, OutageError, Pace, Patience, StoppedError
from starpo_train.judge.reasoning import drop_reasoning
from starpo_train.judge.records import (
    LASTING,
    PARSER_VERSION,
    JudgeItem,
    JudgePin,
    JudgeScore,
    Status,
    hash_json,
)
from starpo_train.judge.rubric import Rubric
from starpo_train.judge.store import Budget, BudgetError, JudgeStore, Spent

_MOST_REFUSALS: Final = 8
"""Requests refused in a row, none answered, before it must be the configuration."""
_BYTES_PER_TOKEN: Final = 2
"""For reserving: fewer than any tokenizer's average, so that a reservation is an upper bound."""


class Judge:
    """One pinned judge with one rubric; may be used by several threads.

    >>> from starpo_train.judge.rubric import read_rubric
    >>> judge = Judge(
    ...     Endpoint(model="judge-2026-01-15", base_url="http://127.0.0.1:9/v1"),
    ...     read_rubric("plan_adherence"), cache=Path("unused"),
    ... )
    >>> judge.score(JudgeItem(item_id="a", parts={"goal": "buy a lamp"})).reason
    'plan_adherence needs plan, trajectory, which the item does not have'
    """

    def __init__(  # noqa: PLR0913 (what a judge is made of)
        self,
        endpoint: Endpoint,
        rubric: Rubric,
        *,
        cache: Path,
        snapshot: str | None = None,
        served_as: str | None = None,
        budget: Budget | None = None,
        patience: Patience | None = None,
        concurrency: int = 8,
        shows_reasoning: bool = False,
        max_chars: int = 200_000,
        ledger: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Nothing is asked yet.

        Args:
            endpoint: whom to ask.
            rubric: what to ask.
            cache: SQLite file for answers and spending, which other judges may share.
            snapshot: the model's name in the pin, such as one with a digest; default `served_as`.
            served_as: what an answer must name as its model; default what the endpoint is asked for.
            budget: what may be spent.
            patience: rate, retries and waits.
            concurrency: requests at a time in `score_all`.
            shows_reasoning: show the judge the agent's thoughts.
            max_chars: longer items are not judged.
            ledger: whose spending this is; default the pin's.
            clock: time, for tests.
        """
        self.rubric = rubric
        self.served_as = served_as or endpoint.model
        self.budget = budget or Budget()
        self.shows_reasoning = shows_reasoning
        self._endpoint = endpoint
        self._schema = rubric.build_schema()
        self.pin = JudgePin(
            model=snapshot or self.served_as,
            prompt_hash=hash_prompt(rubric, shows_reasoning=shows_reasoning),
            temperature=endpoint.temperature,
            parser=PARSER_VERSION,
            schema_hash=hash_json(self._schema),
            max_output_tokens=endpoint.max_output_tokens,
            seed=endpoint.seed,
        )
        self._ledger = ledger or self.pin.digest
        self._store = JudgeStore(cache)
        self._client: Client | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pace = Pace(patience or Patience(), self._stop, clock)
        self._concurrency = concurrency
        self._max_chars = max_chars
        self._refused_in_a_row = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def num_failures(self) -> int:
        """Requests of this process that failed and were tried again, or given up."""
        return self._pace.num_failures

    def read_spent(self) -> Spent:
        """What this ledger has spent, over all starts and processes."""
        return self._store.read_spent(self._ledger)

    def score(self, item: JudgeItem, *, is_fresh: bool = False) -> JudgeScore:
        """Judge one item; whatever keeps it from being judged is a null score with its reason.

        Args:
            item: what to judge.
            is_fresh: ask even where an answer is kept, and keep none, as anchors need it.

        Raises:
            JudgeError: the endpoint takes no request at all: a wrong key, address or model.
        """
        try:
            return self._score(item, is_fresh=is_fresh)
        except (OutageError, BudgetError, StoppedError) as error:
            return self._give_up(item, error)

    # One loop at a time per judge: its end stops all waits.
    def score_all(
        self, items: Iterable[JudgeItem], *, is_fresh: bool = False
    ) -> Iterator[tuple[JudgeItem, JudgeScore]]:
        """Judge many, `concurrency` at a time, in the order in which they are done.

        After an outage or with the budget spent nothing more is asked; what is kept is still given,
        all else is null with the reason. Leaving the loop, or Ctrl-C, waits only for requests that
        are under way, so that their answers are kept.
        """
        source = iter(items)
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="starpo-judge")
        pending: dict[Future[JudgeScore], JudgeItem] = {}
        self._stop.clear()
        ends: list[Exception] = []
        try:
            while True:
                for item in islice(source, 2 * self._concurrency - len(pending)):
                    future = pool.submit(
                        self._score_or_end, item, ends, is_fresh=is_fresh, is_offline=bool(ends)
                    )
                    pending[future] = item
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    item = pending.pop(future)
                    try:
                        score = future.result()
                    except (OutageError, BudgetError, StoppedError) as error:
                        score = self._give_up(item, ends[0] if ends else error)
                    yield item, score
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()

    def close(self) -> None:
        """Close connections and cache."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None
        self._store.close()

    def _score_or_end(
        self, item: JudgeItem, ends: list[Exception], *, is_fresh: bool, is_offline: bool
    ) -> JudgeScore:
        """As `_score`; the thread that meets the end stops the others, before they ask."""
        try:
            return self._score(item, is_fresh=is_fresh, is_offline=is_offline)
        except (OutageError, BudgetError, JudgeError) as error:
            if not isinstance(error, JudgeError):
                ends.append(error)  # first: who was stopped may be looked at before who met the end
            self._stop.set()
            raise

    def _score(
        self, item: JudgeItem, *, is_fresh: bool = False, is_offline: bool = False
    ) -> JudgeScore:
        parts = self._choose_parts(item.parts)
        missing = [name for name in self.rubric.needs if name not in parts]
        if missing:
            reason = f"{self.rubric.name} needs {', '.join(missing)}, which the item does not have"
            return self._describe(item, "missing_part", reason, hash_json(parts), 0)
        shown, num_neutralised = neutralise(parts)
        content = render_parts(shown)
        content_hash = hash_json(content)
        if len(content) > self._max_chars:
            reason = f"{len(content):,} characters, more than max_chars = {self._max_chars:,}"
            return self._describe(item, "too_long", reason, content_hash, num_neutralised)
        key = hash_json([self.pin.digest, content_hash])
        kept = None if is_fresh else self._store.find(key)
        is_cached = kept is not None
        if kept is None:
            if is_offline:
                raise StoppedError
            kept = self._judge(content)
            if not is_fresh and kept["status"] in LASTING:
                kept = self._store.keep(key, kept)
        return JudgeScore(
            item_id=item.item_id,
            pin=self.pin,
            content_hash=content_hash,
            is_cached=is_cached,
            num_neutralised=num_neutralised,
            **kept,
        )

    def _choose_parts(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        names = dict.fromkeys((*self.rubric.needs, *self.rubric.may_use))
        found = {name: parts[name] for name in names if parts.get(name)}
        return found if self.shows_reasoning else drop_reasoning(found)

    def _judge(self, content: str) -> dict[str, Any]:
        """Rendered parts -> what is kept of the answer."""
        messages = build_messages(
            self.rubric, content, mark=draw_mark(content), shows_reasoning=self.shows_reasoning
        )
        try:
            answer = self._pace.keep_asking(lambda: self._ask(messages))
        except RefusedError as error:
            self._note_refusal(error)
            return {"score": None, "reason": str(error), "status": "refused"}
        self._refused_in_a_row = 0
        score, reason, status = self._read(answer)
        return {
            "score": score,
            "reason": reason,
            "status": status,
            "answer_format": answer.answer_format,
            "served_model": answer.model,
            "fingerprint": answer.fingerprint,
            "input_tokens": answer.input_tokens,
            "output_tokens": answer.output_tokens,
        }

    def _ask(self, messages: list[dict[str, str]]) -> Answer:
        length = sum(len(message["content"].encode()) for message in messages)
        number = self._store.reserve(
            self._ledger,
            self.budget,
            input_tokens=length // _BYTES_PER_TOKEN,
            output_tokens=self._endpoint.max_output_tokens,
        )
        try:
            answer = self._connect().ask(messages, self._schema)
        except PassingFailureError as error:
            if not error.is_billed:
                self._store.release(number)
            raise
        except (RefusedError, JudgeError):
            self._store.release(number)
            raise
        self._store.settle(
            number, input_tokens=answer.input_tokens, output_tokens=answer.output_tokens
        )
        return answer

    def _connect(self) -> Client:
        with self._lock:
            if self._client is None:
                self._client = Client(self._endpoint)
            return self._client

    def _read(self, answer: Answer) -> tuple[float | None, str, Status]:
        if answer.model != self.served_as:
            reason = f"answered by {answer.model!r}, and {self.served_as!r} is pinned"
            return None, reason, "other_model"
        if answer.refusal or answer.finish_reason == "content_filter":
            return None, answer.refusal or "stopped by a content filter", "refused"
        if answer.finish_reason == "length":
            limit = self._endpoint.max_output_tokens
            return None, f"the answer was cut at max_output_tokens = {limit}", "cut"
        return parse_answer(answer.text, self.rubric)

    def _note_refusal(self, error: Exception) -> None:
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= _MOST_REFUSALS:
            raise JudgeError(
                f"judge {self._endpoint.model!r}: {self._refused_in_a_row} requests in a row were "
                f"refused, the last with {error}; check the configuration."
            ) from error

    def _give_up(self, item: JudgeItem, error: Exception) -> JudgeScore:
        statuses: dict[type, Status] = {OutageError: "outage", BudgetError: "budget"}
        status = statuses.get(type(error), "stopped")
        parts, num_neutralised = neutralise(self._choose_parts(item.parts))
        content_hash = hash_json(render_parts(parts))
        return self._describe(item, status, str(error) or "stopped", content_hash, num_neutralised)

    def _describe(
        self,
        item: JudgeItem,
        status: Status,
        reason: str,
        content_hash: str,
        num_neutralised: int,
    ) -> JudgeScore:
        return JudgeScore(
            item_id=item.item_id,
            score=None,
            reason=reason,
            status=status,
            pin=self.pin,
            content_hash=content_hash,
            num_neutralised=num_neutralised,
        )
