"""A criterion in words + material -> JudgeScore: the judge as evaluators call it."""

import threading
from collections.abc import Callable, Mapping
from typing import Final

from starpo_train.judge.judge import Judge
from starpo_train.judge.records import JudgeItem, JudgeScore, hash_json
from starpo_train.judge.rubric import Rubric

LEVELS: Final = ((0.0, "not met"), (0.5, "partly met"), (1.0, "met in full"))


class CriterionJudge:
    """`judge=` of an evaluator (`starpo_train.evals`); each criterion is a rubric with its own pin.

    Args:
        build: rubric -> judge, such as `lambda rubric: Judge(endpoint, rubric, cache=path)`.
    """

    def __init__(self, build: Callable[[Rubric], Judge]) -> None:
        self._build = build
        self._judges: dict[Rubric, Judge] = {}
        self._lock = threading.Lock()

    def __call__(self, *, criterion: str, material: Mapping[str, str]) -> JudgeScore:
        """How far the material meets the criterion, from 0 to 1; null where it cannot be said."""
        given = {name: text for name, text in material.items() if text}
        rubric = Rubric(
            name="criterion",
            needs=tuple(given) or ("material",),
            judged=list(given)[-1] if given else "material",
            instructions=criterion,
            levels=LEVELS,
        )
        with self._lock:
            judge = self._judges.get(rubric)
            if judge is None:
                judge = self._judges[rubric] = self._build(rubric)
        return judge.score(JudgeItem(item_id=hash_json(given)[:16], parts=given))

    def close(self) -> None:
        """Close what was opened."""
        with self._lock:
            for judge in self._judges.values():
                judge.close()
            self._judges.clear()
