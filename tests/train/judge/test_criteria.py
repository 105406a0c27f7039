"""The judge behind evaluators."""

import json

from starpo_train.evals import ContextRelevance
from starpo_train.judge import CriterionJudge, Endpoint, Judge


def test_an_evaluator_asks_the_pinned_judge(fake, tmp_path):
    """The criterion is the rubric, the score the judge's; asked again, it is kept."""
    fake.text = json.dumps({"reason": "half of it helps", "score": 0.5})
    endpoint = Endpoint(model=fake.model, base_url=fake.url)
    judge = CriterionJudge(lambda rubric: Judge(endpoint, rubric, cache=tmp_path / "c.sqlite"))
    relevance = ContextRelevance(judge=judge, criterion="Does it help?")
    results = [relevance.evaluate(input="a lamp", context=["lamps", "cats"]) for _ in range(2)]
    assert [(r.score, r.reason) for r in results] == [(0.5, "half of it helps")] * 2
    (request,) = fake.requests
    assert "Does it help?" in request["messages"][0]["content"]
    judge.close()


def test_an_evaluator_of_a_failing_judge_says_null(fake, tmp_path):
    """An answer that cannot be read is no 0."""
    fake.text = "well"
    endpoint = Endpoint(model=fake.model, base_url=fake.url)
    judge = CriterionJudge(lambda rubric: Judge(endpoint, rubric, cache=tmp_path / "c.sqlite"))
    result = ContextRelevance(judge=judge).evaluate(input="a lamp", context=["lamps"])
    assert result.score is None
    assert "unparsable answer" in result.reason
    first = judge(criterion="a", material={"goal": "x"})
    second = judge(criterion="b", material={"goal": "x"})
    assert first.judge_prompt_hash != second.judge_prompt_hash
    judge.close()
