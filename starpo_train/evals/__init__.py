"""Runs -> scores: deterministic evaluators, by name, for one run or a dataset; docs/evaluators.md."""

from starpo_train.evals.answers import are_same, are_same_words
from starpo_train.evals.batch import (
    DEFAULT_EVALUATORS,
    PassHatK,
    compute_pass_hat_k,
    evaluate_dataset,
    evaluate_facts,
)
from starpo_train.evals.calls import canonical_json, hash_state
from starpo_train.evals.case import EvaluationCase, Facts, Reference
from starpo_train.evals.evaluator import (
    Evaluator,
    build_evaluator,
    list_evaluators,
    register_evaluator,
)
from starpo_train.evals.futureagi import compare_with_futureagi
from starpo_train.evals.judged import ContextRelevance, CustomEvaluation
from starpo_train.evals.judging import Judge
from starpo_train.evals.matching import CallMatch, match_calls
from starpo_train.evals.path import ActionPath, PathStep, ToolCall, read_path
from starpo_train.evals.result import EvaluationResult, StepScore
from starpo_train.evals.runs import read_references
from starpo_train.evals.single import CallsFigure, PathFigure
from starpo_train.evals.task_completion import TaskCompletion
from starpo_train.evals.tool_selection import ToolSelectionAccuracy
from starpo_train.evals.trajectory_score import TrajectoryScore

__all__ = [
    "DEFAULT_EVALUATORS",
    "ActionPath",
    "CallMatch",
    "CallsFigure",
    "ContextRelevance",
    "CustomEvaluation",
    "EvaluationCase",
    "EvaluationResult",
    "Evaluator",
    "Facts",
    "Judge",
    "PassHatK",
    "PathFigure",
    "PathStep",
    "Reference",
    "StepScore",
    "TaskCompletion",
    "ToolCall",
    "ToolSelectionAccuracy",
    "TrajectoryScore",
    "are_same",
    "are_same_words",
    "build_evaluator",
    "canonical_json",
    "compare_with_futureagi",
    "compute_pass_hat_k",
    "evaluate_dataset",
    "evaluate_facts",
    "hash_state",
    "list_evaluators",
    "match_calls",
    "read_path",
    "read_references",
    "register_evaluator",
]
