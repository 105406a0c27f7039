"""One judge at a real HTTP server: pin, cache, failures, limits."""

import json
import multiprocessing
import sqlite3
import threading
from collections import Counter

import pytest

from starpo_train.errors import ConfigError, JudgeError
from starpo_train.guards.judges import names_snapshot
from starpo_train.judge import Budget, Patience
from starpo_train.judge.endpoint import read_retry_after
from starpo_train.judge.patience import StoppedError
from starpo_train.judge.store import BudgetError, JudgeStore


def score_all(judge, items):
    return {item.item_id: score for item, score in judge.score_all(items)}


def test_a_score_says_who_gave_it_and_why(fake, make_judge, item):
    """Score, reason, pin, tokens; the request holds the schema, temperature and limit."""
    judge = make_judge()
    done, failed = judge.score(item("1")), judge.score(item("2", is_done=False))
    assert (done.score, failed.score) == (1.0, 0.0)
    assert (done.reason, done.status, done.answer_format) == ("as shown", "scored", "json_schema")
    assert (done.input_tokens, done.output_tokens, done.fingerprint) == (100, 10, "fp")
    assert done.judge_id == f"judge-2026-01-15#{judge.pin.digest[:10]}"
    assert done.judge_prompt_hash == judge.pin.prompt_hash
    request = fake.requests[0]
    assert (request["model"], request["temperature"]) == ("judge-2026-01-15", 0.0)
    assert request["max_tokens"] == 512
    form = request["response_format"]["json_schema"]
    assert (form["strict"], form["schema"]) == (True, judge.rubric.build_schema())


def test_everything_that_changes_a_judgement_changes_the_pin(make_judge, monkeypatch):
    """Model, prompt, temperature, parser, schema: five judges and the first one, six ids."""
    judges = [
        make_judge(),
        make_judge(snapshot="judge-2026-02-01"),
        make_judge("context_relevance"),
        make_judge(temperature=0.125),
        make_judge(endpoint={"max_output_tokens": 64}),
    ]
    monkeypatch.setattr("starpo_train.judge.judge.PARSER_VERSION", "2")
    judges.append(make_judge())
    assert len({judge.pin.judge_id for judge in judges}) == 6
    assert make_judge().pin == judges[-1].pin


def test_the_id_of_a_floating_model_does_not_look_pinned(make_judge):
    """The pin's digest in the id is none of a model: the guard still sees that it names no snapshot."""
    assert not names_snapshot(make_judge(snapshot="judge-large").pin.judge_id)
    assert names_snapshot(make_judge(snapshot="judge-2026-01-15").pin.judge_id)


def test_an_answer_of_another_model_is_no_judgement(fake, make_judge, item):
    """Null, and not kept: the right model may answer later."""
    fake.model = "judge-2026-02-01"
    score = make_judge().score(item("1"))
    assert (score.score, score.status) == (None, "other_model")
    assert score.reason == "answered by 'judge-2026-02-01', and 'judge-2026-01-15' is pinned"
    fake.model = "judge-2026-01-15"
    assert make_judge().score(item("1")).score == 1.0


def test_an_answer_is_kept_over_starts(fake, make_judge, item):
    """A second judge with the same pin asks nobody; other content or another pin is asked again."""
    first = make_judge()
    assert not first.score(item("1")).is_cached
    first.close()
    again = make_judge().score(item("1"))
    assert (again.score, again.reason, again.is_cached) == (1.0, "as shown", True)
    assert len(fake.requests) == 1
    make_judge().score(item("1", said="Bye."))
    make_judge(temperature=1.0).score(item("1"))
    assert len(fake.requests) == 3
    assert not make_judge().score(item("1"), is_fresh=True).is_cached
    assert len(fake.requests) == 4


def test_an_answer_that_cannot_be_read_is_kept_as_null(fake, make_judge, item):
    """It was paid for; asking again at temperature 0 would give the same."""
    fake.text = "I would say 1.0"
    scores = [make_judge().score(item("1")) for _ in range(2)]
    assert [(s.score, s.status, s.is_cached) for s in scores] == [
        (None, "unparsable", False),
        (None, "unparsable", True),
    ]
    assert scores[0].reason.endswith("'I would say 1.0'")


def test_answers_that_are_cut_or_refused_are_null(fake, make_judge, item):
    """Each with its own status, even where the text would parse."""
    fake.finish_reason = "length"
    assert make_judge().score(item("1")).reason == "the answer was cut at max_output_tokens = 512"
    fake.finish_reason = "content_filter"
    assert make_judge().score(item("2")).status == "refused"
    fake.finish_reason, fake.refusal = "stop", "I cannot help with that"
    score = make_judge().score(item("3"))
    assert (score.score, score.status, score.reason) == (None, "refused", "I cannot help with that")


def test_an_endpoint_without_schemas_is_asked_without(fake, make_judge, item):
    """One refused request, then none with a schema any more."""
    fake.knows_schemas = False
    judge = make_judge()
    scores = score_all(judge, [item("1"), item("2", is_done=False)])
    assert [scores[key].score for key in "12"] == [1.0, 0.0]
    assert {score.answer_format for score in scores.values()} == {"text"}
    assert ["response_format" in request for request in fake.requests] == [True, False, False]


def test_retry_after_is_honoured_to_the_millisecond(fake, make_judge, item, clock):
    """7 s as the header says, 0.25 s as the finer one says, before anybody asks again."""
    fake.failures = [
        (429, {"Retry-After": "7"}),
        (429, {"Retry-After": "9", "retry-after-ms": "250"}),
    ]
    judge = make_judge()
    assert judge.score(item("1")).score == 1.0
    assert clock.waits == [7.0, 0.25]
    assert judge.num_failures == 2
    assert judge.read_spent().calls == 1


def test_retry_after_as_a_date_and_as_nonsense():
    """HTTP's other form is a date; what cannot be read is as if it were not there."""
    now_s = 1_767_225_600.0  # 2026-01-01 00:00:00 UTC
    headers = {"retry-after": "Thu, 01 Jan 2026 00:00:30 GMT"}
    assert read_retry_after(headers, now_s=now_s) == 30.0
    assert read_retry_after(headers, now_s=now_s + 60) == 0.0
    assert read_retry_after({"retry-after": "soon"}) is None
    assert read_retry_after({}) is None


def test_waits_grow_without_retry_after(fake, make_judge, item, clock):
    """1, 2 and 4 s, each shortened by up to a quarter at random."""
    fake.failures = [(500, {}), (502, {}), (429, {})]
    assert make_judge(patience=Patience(attempts=4)).score(item("1")).score == 1.0
    assert len(clock.waits) == 3
    for waited, longest in zip(clock.waits, (1.0, 2.0, 4.0), strict=True):
        assert 0.75 * longest <= waited <= longest


def test_a_rate_spaces_requests(make_judge, item, clock):
    """At 4 a second, each but the first waits for a quarter."""
    judge = make_judge(patience=Patience(requests_per_s=4))
    score_all(judge, [item(str(i)) for i in range(4)])
    assert clock.waits == pytest.approx([0.25] * 3)


def test_an_outage_ends_the_run_and_the_next_start_goes_on(fake, make_judge, item):
    """5 of 9 items are answered before it; the others are null with the reason, and asked later."""
    items = [item(str(i)) for i in range(9)]
    fake.down_after = 5
    first = score_all(make_judge(), items)
    assert Counter(score.status for score in first.values()) == {"scored": 5, "outage": 4}
    lost = [score for score in first.values() if score.score is None]
    assert {score.reason for score in lost} == {"HTTP 503: down, 3 times in a row"}
    assert len(fake.requests) == 8  # 5, and three tries
    fake.down_after = None
    second = score_all(make_judge(), items)
    assert [score.score for score in second.values()] == [1.0] * 9
    assert sum(score.is_cached for score in second.values()) == 5
    assert len(fake.requests) == 12


def test_what_is_kept_is_given_even_in_an_outage(fake, make_judge, item):
    """An item that was answered before has its score, wherever it stands."""
    make_judge().score(item("9"))
    fake.down_after = 1
    scores = score_all(make_judge(), [item(str(i)) for i in range(10)])
    assert (scores["9"].score, scores["9"].is_cached) == (1.0, True)
    assert [scores[str(i)].score for i in range(9)] == [None] * 9


def test_an_endpoint_that_nobody_listens_at(fake, make_judge, item):
    """No connection is an outage: null, nothing spent."""
    judge = make_judge()
    fake._server.server_close()
    score = judge.score(item("1"))
    assert (score.score, score.status) == (None, "outage")
    assert score.reason.startswith("no connection")
    assert judge.read_spent().calls == 0


def test_a_retry_after_beyond_patience_is_an_outage(fake, make_judge, item, clock):
    """Nobody sits through an hour; the reason says how long it would be."""
    fake.failures = [(429, {"Retry-After": "3600"})]
    score = make_judge().score(item("1"))
    assert (score.status, score.reason) == (
        "outage",
        "HTTP 429: as scripted; it says to wait 3600 s",
    )
    assert clock.waits == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_is_an_error(fake, make_judge, item, status):
    """Every item would fail alike, so it is no null but a fault to be mended."""
    fake.failures = [(status, {})] * 2
    judge = make_judge()
    with pytest.raises(JudgeError, match=f"HTTP {status}: as scripted; check judge.base_url"):
        judge.score(item("1"))
    with pytest.raises(JudgeError):
        list(judge.score_all([item("1"), item("2")]))
    assert judge.read_spent().calls == 0


def test_a_refused_request_is_null_and_many_in_a_row_are_an_error(fake, make_judge, item):
    """One item may be too long for the model; eight in a row are a wrong configuration."""
    fake.failures = [(400, {})]
    judge = make_judge()
    scores = score_all(judge, [item("1"), item("2")])
    assert (scores["1"].score, scores["1"].status, scores["2"].score) == (None, "refused", 1.0)
    fake.failures = [(400, {})] * 8
    with pytest.raises(JudgeError, match="8 requests in a row were refused"):
        list(judge.score_all(item(str(i)) for i in range(3, 20)))


def test_a_budget_of_calls_is_kept_over_starts(fake, make_judge, item):
    """3 calls and not one more, by whichever start; a larger budget goes on."""
    items = [item(str(i)) for i in range(5)]
    first = score_all(make_judge(budget=Budget(max_calls=3)), items)
    assert Counter(s.status for s in first.values()) == {"scored": 3, "budget": 2}
    lost = next(score for score in first.values() if score.status == "budget")
    assert lost.reason == "budget.max_calls = 3: the next call may need 4"
    score_all(make_judge(budget=Budget(max_calls=3)), items)
    assert len(fake.requests) == 3
    again = score_all(make_judge(budget=Budget(max_calls=5)), items)
    assert [score.score for score in again.values()] == [1.0] * 5
    assert len(fake.requests) == 5


def test_a_budget_of_tokens_and_of_money_is_never_exceeded(make_judge, item):
    """What a call may need is set aside first: what is spent stays below, also side by side."""
    items = [item(str(i)) for i in range(40)]
    judge = make_judge(budget=Budget(max_tokens=4000), concurrency=8)
    scores = score_all(judge, items)
    spent = judge.read_spent()
    num_scored = sum(score.score is not None for score in scores.values())
    assert 0 < num_scored < 40
    assert spent.tokens == 110 * num_scored <= 4000
    budget = Budget(max_cost=0.01, input_price=1.0, output_price=5.0)
    dear = make_judge("task_completion", temperature=1.0, budget=budget)
    score_all(dear, items)
    spent = dear.read_spent()
    assert 0 < budget.price(spent.input_tokens, spent.output_tokens) <= 0.01
    assert budget.price(1_000_000, 1_000_000) == 6.0


def test_a_call_without_usage_costs_what_was_set_aside(fake, make_judge, item):
    """An endpoint that counts no tokens does not make the budget endless."""
    fake.has_usage = False
    judge = make_judge()
    judge.score(item("1"))
    spent = judge.read_spent()
    assert (spent.calls, spent.unsettled, spent.output_tokens) == (1, 1, 512)
    assert spent.input_tokens > 500


def test_several_at_a_time_and_no_more(fake, make_judge, item):
    """Four requests wait for each other at the server, so four are asked at once; never a fifth."""
    barrier = threading.Barrier(4, timeout=30)
    fake.hold = barrier.wait
    scores = score_all(make_judge(concurrency=4), [item(str(i)) for i in range(12)])
    assert [score.score for score in scores.values()] == [1.0] * 12
    assert fake.most_at_once == 4


def test_leaving_the_loop_keeps_what_was_under_way(fake, make_judge, item):
    """As Ctrl-C does: nothing new is asked, and answers that were paid for are kept."""
    judge = make_judge(concurrency=2)
    found = judge.score_all(item(str(i)) for i in range(50))
    next(found)
    found.close()
    num_asked = len(fake.requests)
    assert num_asked < 50
    with sqlite3.connect(judge._store.path) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (num_asked,)
    assert judge.score(item("49")).score == 1.0


def test_a_stop_ends_a_wait(make_judge, item):
    """A request that waits for the endpoint does not hold up the end of a run."""
    judge = make_judge()
    judge._stop.set()
    with pytest.raises(StoppedError):
        judge._pace.keep_asking(lambda: None)
    assert judge.score(item("1")).status == "stopped"


def keep_many(path, worker, results):
    store = JudgeStore(path)
    kept = [store.keep(f"k{i}", {"worker": worker})["worker"] for i in range(30)]
    granted = 0
    for _ in range(30):
        try:
            store.reserve("run", Budget(max_calls=40), input_tokens=1, output_tokens=1)
            granted += 1
        except BudgetError:
            pass
    results.put((kept, granted))


@pytest.mark.slow
def test_several_processes_share_answers_and_budget(tmp_path):
    """Of four writers the first one's answer stays for all, and 40 calls are granted together."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    path = tmp_path / "cache.sqlite"
    workers = [context.Process(target=keep_many, args=(path, i, results)) for i in range(4)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=180) for _ in workers]
    for worker in workers:
        worker.join()
    store = JudgeStore(path)
    final = [(store.find(f"k{i}") or {})["worker"] for i in range(30)]
    assert [kept for kept, _ in found] == [final] * 4
    assert sum(granted for _, granted in found) == 40
    assert store.read_spent("run").calls == 40
    store.close()


def test_a_file_that_is_no_cache(tmp_path, make_judge, item):
    """Named, and left as it is."""
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be read as one" * 20)
    with pytest.raises(ConfigError, match=r"notes\.txt: no cache of a judge"):
        make_judge(cache=path).score(item("1"))
    assert path.read_text().startswith("not a database")


def test_the_key_comes_from_its_variable_and_goes_nowhere_else(fake, make_judge, item, monkeypatch):
    """It is in no row of the cache."""
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    judge = make_judge(endpoint={"api_key_env": "JUDGE_KEY"})
    judge.score(item("1"))
    assert "sk-very-secret" not in json.dumps(fake.requests)
    assert b"sk-very-secret" not in judge._store.path.read_bytes()
