"""Facts of a run -> EvaluationResult: what all evaluators share, and the registry of their names."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any, Final, TypeVar, Unpack

from starpo_train.errors import ConfigError
from starpo_train.evals.case import EvaluationCase, Facts, build_case, read_number
from starpo_train.evals.path import ActionPath, MalformedPathError
from starpo_train.evals.result import EvaluationResult

ENTRY_POINTS: Final = "starpo_train.evaluators"


class Evaluator(ABC):
    """Scores runs. A subclass says how in `score`; what goes wrong there is no score, never 0."""

    name: str

    def evaluate(self, **facts: Unpack[Facts]) -> EvaluationResult:
        """What is known of a run -> score, reason, details.

        Raises:
            TypeError: a fact of an unknown name.
        """
        try:
            case = build_case(facts)
        except MalformedPathError as error:
            return self.say(None, f"malformed: {error}", flags=("malformed",))
        return self.evaluate_case(case)

    def evaluate_case(self, case: EvaluationCase) -> EvaluationResult:
        """The same for facts that were read before."""
        try:
            result = self.score(case)
        except MissingFactError as error:
            return self.say(None, str(error), flags=(error.flag,))
        except Exception as error:  # noqa: BLE001 - a user's function or judge may raise anything
            what = f"{type(error).__name__}: {error}"
            return self.say(None, f"error: {what}", {"error": what}, flags=("error",))
        if result.score is not None and read_number(result.score) is None:
            return replace(
                result,
                score=None,
                reason=f"error: a score of {result.score!r} is not from 0 to 1",
                flags=(*result.flags, "error"),
            )
        return result

    @abstractmethod
    def score(self, case: EvaluationCase) -> EvaluationResult:
        """Case -> result; may raise."""

    def say(
        self,
        score: float | None,
        reason: str,
        details: Mapping[str, Any] | None = None,
        *,
        flags: tuple[str, ...] = (),
    ) -> EvaluationResult:
        """A result under this evaluator's name."""
        return EvaluationResult(
            name=self.name, score=score, reason=reason, details=dict(details or {}), flags=flags
        )


def require_path(case: EvaluationCase) -> ActionPath:
    """The case's path.

    Raises:
        MissingFactError: no trajectory was given.
    """
    if case.path is None:
        raise MissingFactError("no trajectory: give messages or steps", flag="no_trajectory")
    return case.path


class MissingFactError(ValueError):
    """An evaluator needs what was not given, so it says nothing."""

    def __init__(self, message: str, *, flag: str) -> None:
        super().__init__(message)
        self.flag = flag


Builder = TypeVar("Builder", bound=Callable[..., Evaluator])
_REGISTRY: dict[str, Callable[..., Evaluator]] = {}


def register_evaluator(name: str) -> Callable[[Builder], Builder]:
    """Decorate an Evaluator class, or a function that builds one, to be had by name.

    Raises:
        ConfigError: the name is taken.
    """

    def register(build: Builder) -> Builder:
        known = _REGISTRY.get(name, build)
        # the same again is a notebook's cell that was run twice
        if (known.__module__, known.__qualname__) != (build.__module__, build.__qualname__):
            raise ConfigError(f"an evaluator named {name!r} is registered already; choose another.")
        _REGISTRY[name] = build
        return build

    return register


def list_evaluators() -> list[str]:
    """Names of all evaluators, those of installed packages among them."""
    return sorted(_REGISTRY.keys() | {point.name for point in entry_points(group=ENTRY_POINTS)})


def build_evaluator(name: str, **options: Any) -> Evaluator:
    """The evaluator of this name, built with these options.

    Packages offer theirs under the entry point group `starpo_train.evaluators`.

    Raises:
        ConfigError: there is none.
    """
    build = _REGISTRY.get(name)
    if build is None:
        points = entry_points(group=ENTRY_POINTS, name=name)
        if not points:
            raise ConfigError(f"no evaluator {name!r}; known: {', '.join(list_evaluators())}.")
        build = next(iter(points)).load()
    evaluator = build(**options)
    if not isinstance(evaluator, Evaluator):
        raise ConfigError(f"{name!r} built {type(evaluator).__name__}, which is no Evaluator.")
    return evaluator
