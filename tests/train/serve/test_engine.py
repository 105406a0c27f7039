"""Prompt ids -> sampled ids: the numbers are those of a plain forward pass."""

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from starpo_train.serve.engine import Engine
from starpo_train.serve.generation import Generation, GenerationRequest
from starpo_train.serve.loading import load_model

PROMPTS = [[5, 6, 7, 8], [9] * 23, [1, 2], [30, 31, 32, 33, 34, 35, 36, 37, 38]]


@pytest.fixture(scope="module")
def loaded(random_folder: Path) -> tuple[Any, Any]:
    return load_model(random_folder)


@pytest.fixture
def engine(loaded: tuple[Any, Any]) -> Iterator[Engine]:
    engine = Engine(*loaded, max_batch=3, max_context=64)
    yield engine
    engine.close()


def generate(engine: Engine, *requests: GenerationRequest) -> list[Generation]:
    """Submit all at once, wait for all."""
    done: queue.Queue[Generation] = queue.Queue()
    generations = [engine.submit(request, on_done=done.put) for request in requests]
    for _ in generations:
        done.get(timeout=30)
    return generations


def sampled_ids(generation: Generation) -> list[int]:
    return [token.token_id for token in generation.tokens]


def request(prompt_ids: list[int], **options: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt_ids": prompt_ids, "max_tokens": 12, "seed": 1, **options})


def plain_logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def test_logprobs_are_those_of_a_plain_forward_pass(engine: Engine, loaded: tuple[Any, Any]):
    """Rows of different lengths that join and leave a batch of three, at several temperatures."""
    generations = generate(
        engine,
        *(
            request(prompt, temperature=temperature, max_tokens=4 + 5 * number, seed=number)
            for number, (prompt, temperature) in enumerate(
                (prompt, temperature) for temperature in (1.0, 0.5) for prompt in PROMPTS
            )
        ),
    )
    for generation in generations:
        prompt_ids, ids = generation.request.prompt_ids, sampled_ids(generation)
        expected_TV = plain_logprobs(loaded[0], prompt_ids + ids)
        for offset, token in enumerate(generation.tokens):
            expected = float(expected_TV[len(prompt_ids) - 1 + offset, token.token_id])
            assert token.logprob == pytest.approx(expected, abs=1e-4)


def test_a_prompt_that_extends_an_answer_is_the_same_as_a_fresh_one(
    engine: Engine, loaded: tuple[Any, Any]
):
    """Keys and values kept from the last turn give the numbers of a fresh computation."""
    (first,) = generate(engine, request(PROMPTS[0]))
    extended = [*PROMPTS[0], *sampled_ids(first), 40, 41, 42]
    (second,) = generate(engine, request(extended))
    ids = sampled_ids(second)
    expected_TV = plain_logprobs(loaded[0], extended + ids)
    for offset, token in enumerate(second.tokens):
        expected = float(expected_TV[len(extended) - 1 + offset, token.token_id])
        assert token.logprob == pytest.approx(expected, abs=1e-4)


def test_the_same_seed_gives_the_same_tokens(engine: Engine):
    """Alone, twice; and another seed gives others."""
    runs = [sampled_ids(generate(engine, request(PROMPTS[0], seed=s))[0]) for s in (7, 7, 8)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_seed_gives_the_same_tokens_in_a_crowd(engine: Engine):
    """A row's random numbers are its own, whoever shares the batch."""
    alone = sampled_ids(generate(engine, request(PROMPTS[1], seed=3))[0])
    crowd = generate(engine, *(request(prompt, seed=3) for prompt in PROMPTS))
    assert alone == sampled_ids(crowd[1])


def test_temperature_zero_takes_the_likeliest(engine: Engine, loaded: tuple[Any, Any]):
    """The same ids as a greedy loop over plain forward passes."""
    expected = list(PROMPTS[0])
    for _ in range(8):
        expected.append(int(plain_logprobs(loaded[0], expected)[-1].argmax()))
    (greedy,) = generate(engine, request(PROMPTS[0], temperature=0.0, max_tokens=8))
    assert expected[len(PROMPTS[0]) :] == sampled_ids(greedy)


def test_sampling_follows_the_distribution(engine: Engine, loaded: tuple[Any, Any]):
    """400 first tokens: the likeliest one's share is within 4 standard errors of its probability."""
    probability_V = plain_logprobs(loaded[0], PROMPTS[0])[-1].exp()
    likeliest, p = int(probability_V.argmax()), float(probability_V.max())
    generations = generate(
        engine, *(request(PROMPTS[0], seed=seed, max_tokens=1) for seed in range(400))
    )
    share = sum(sampled_ids(g)[0] == likeliest for g in generations) / 400
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / 400) ** 0.5)


def test_answers_end_at_the_limit_or_at_the_context_end(engine: Engine):
    """Both are `length`; the context holds 64 positions."""
    short, full = generate(
        engine, request(PROMPTS[0], max_tokens=3), request([9] * 60, max_tokens=50)
    )
    assert [short.finish_reason, len(short.tokens)] == ["length", 3]
    assert [full.finish_reason, len(full.tokens)] == ["length", 4]


def test_a_cancelled_request_frees_its_slot(engine: Engine):
    """Three endless requests fill the batch; once cancelled, a fourth is answered."""
    done: queue.Queue[Generation] = queue.Queue()
    started: queue.Queue[Any] = queue.Queue()
    endless = [
        engine.submit(
            request([9] * 5, max_tokens=58, seed=seed), on_done=done.put, on_token=started.put
        )
        for seed in range(3)
    ]
    started.get(timeout=30)
    for generation in endless:
        generation.cancel()
    (fourth,) = generate(engine, request(PROMPTS[0], max_tokens=2))
    assert len(fourth.tokens) == 2
    assert {done.get(timeout=30).finish_reason for _ in endless} <= {"cancelled", "length", "stop"}
    assert engine.num_active == 0


def test_a_failing_forward_pass_is_answered_and_survived(loaded: tuple[Any, Any]):
    """The requests in the batch get the error, the next ones work."""
    model, tokenizer = loaded

    class Flaky:
        generation_config = model.generation_config
        failures = 1

        def __call__(self, **inputs: Any) -> Any:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("out of memory")
            return model(**inputs)

    engine = Engine(Flaky(), tokenizer, max_batch=2, max_context=64)
    try:
        (first,) = generate(engine, request(PROMPTS[0]))
        (second,) = generate(engine, request(PROMPTS[0], max_tokens=2))
    finally:
        engine.close()
    assert [first.finish_reason, str(first.error)] == ["error", "out of memory"]
    assert [second.error, len(second.tokens)] == [None, 2]


def test_kept_rows_are_bounded(loaded: tuple[Any, Any]):
    """With room for nothing every prompt is computed afresh, and the answers stay the same."""
    engine = Engine(*loaded, max_batch=2, max_context=64, kept_bytes=0)
    try:
        runs = [sampled_ids(generate(engine, request(PROMPTS[1]))[0]) for _ in range(2)]
    finally:
        engine.close()
    assert runs[0] == runs[1]
