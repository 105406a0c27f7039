"""Items -> pinned, cached, injection-resistant judgements of an LLM; docs/judge.md."""

from starpo_train.judge.anchors import Anchor, AnchorReport, check_anchors, read_anchors
from starpo_train.judge.canaries import CanaryReport, run_canaries
from starpo_train.judge.criteria import CriterionJudge
from starpo_train.judge.endpoint import Endpoint
from starpo_train.judge.judge import Judge
from starpo_train.judge.patience import Patience
from starpo_train.judge.records import JudgeItem, JudgePin, JudgeScore
from starpo_train.judge.rubric import Rubric, list_built_in_rubrics, read_rubric
from starpo_train.judge.store import Budget, Spent

__all__ = [
    "Anchor",
    "AnchorReport",
    "Budget",
    "CanaryReport",
    "CriterionJudge",
    "Endpoint",
    "Judge",
    "JudgeItem",
    "JudgePin",
    "JudgeScore",
    "Patience",
    "Rubric",
    "Spent",
    "check_anchors",
    "list_built_in_rubrics",
    "read_anchors",
    "read_rubric",
    "run_canaries",
]
