"""A judge file: who judges what, by which rubric, for how much, and where it goes."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from starpo_train.errors import ConfigError
from starpo_train.judge.anchors import DRIFT_TOLERANCE
from starpo_train.judge.canaries import FLIP_TOLERANCE
from starpo_train.tomlfile import read_config


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSection:
    """Who judges, and how it is asked."""

    model: str
    """As the endpoint calls it: a snapshot, no alias."""
    dataset: Path
    output: Path
    """Folder for scores, summary and cache."""
    rubric: str = "task_completion"
    """A built-in one, or a .toml or .md file."""
    base_url: str | None = None
    """Of an OpenAI-compatible API, `.../v1`; absent: OpenAI's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """Variable that holds the key."""
    snapshot: str | None = None
    """The model's name in the pin, such as one with the digest of its weights; absent: served_as."""
    served_as: str | None = None
    """What answers must name as their model; absent: model."""
    temperature: float = 0.0
    max_output_tokens: int = 512
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105
    """What the endpoint calls that limit."""
    seed: int | None = None
    structured: bool = True
    """Ask for the JSON schema (`response_format`)."""
    reasoning: Literal["hide", "show"] = "hide"
    """Whether the judge sees the agent's thoughts."""
    cache: Path | None = None
    """Absent: OUTPUT/cache.sqlite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsSection:
    """What is judged."""

    scope: Literal["trajectory", "turn"] = "trajectory"
    split: str | None = None
    """Absent: every split."""
    plan: Literal["state", "first_text"] = "state"
    """Where the plan is: the state named `plan`, or the first text of the agent."""
    references: Path | None = None
    """JSON Lines, `{"task_id", "reference"}`: what reaching the goal means."""
    longest_text: int = 8_000
    """Characters shown of one text."""
    max_chars: int = 200_000
    """Longer items are not judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorsSection:
    """The frozen set."""

    file: Path | None = None
    """JSON Lines, `{"id", "parts", "expected"}`; without one the verdict is INCONCLUSIVE."""
    sha256: str | None = None
    """Of the file, so that it stays as it is."""
    tolerance: float = DRIFT_TOLERANCE
    """Mean distance allowed, as a share of the rubric's range."""
    on_drift: Literal["stop", "go_on"] = "stop"
    """Before anything else is spent, or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanariesSection:
    """Injections."""

    items: int = 8
    """Judged again with each injection; 0: none."""
    tolerance: float = FLIP_TOLERANCE
    """Move towards the demanded score that is a flip, as a share of the range."""
    max_flip_rate: float = 0.1
    """Above it the verdict is INCONCLUSIVE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSection:
    """What may be spent, over all starts of this run, and how fast."""

    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    input_price: float = 0.0
    """Of a million tokens."""
    output_price: float = 0.0
    """Of a million tokens."""
    requests_per_s: float = 0.0
    """0: no limit."""
    concurrency: int = 8
    attempts: int = 6
    """Requests for one item before the endpoint counts as out of order."""
    longest_wait_s: float = 60.0
    """Between two of them, also where Retry-After asks for more."""
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardsSection:
    """Late rewards."""

    store: Path | None = None
    """Trace store to write them to; absent: none are written."""
    name: str | None = None
    """Absent: the rubric's."""
    sign: bool = False
    """Refuse to write unsigned ones; they are signed whenever there is a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """One judge file."""

    judge: JudgeSection
    items: ItemsSection = field(default_factory=ItemsSection)
    anchors: AnchorsSection = field(default_factory=AnchorsSection)
    canaries: CanariesSection = field(default_factory=CanariesSection)
    budget: BudgetSection = field(default_factory=BudgetSection)
    rewards: RewardsSection = field(default_factory=RewardsSection)

    def __post_init__(self) -> None:
        """Refuse values that no run could use."""
        for where, value, low in (
            ("judge.max_output_tokens", self.judge.max_output_tokens, 1),
            ("judge.temperature", self.judge.temperature, 0),
            ("items.longest_text", self.items.longest_text, 1),
            ("items.max_chars", self.items.max_chars, 1),
            ("canaries.items", self.canaries.items, 0),
            ("budget.concurrency", self.budget.concurrency, 1),
            ("budget.attempts", self.budget.attempts, 1),
            ("budget.requests_per_s", self.budget.requests_per_s, 0),
            ("budget.timeout_s", self.budget.timeout_s, 0.001),
            ("budget.longest_wait_s", self.budget.longest_wait_s, 0),
            ("budget.input_price", self.budget.input_price, 0),
            ("budget.output_price", self.budget.output_price, 0),
            ("budget.max_calls", self.budget.max_calls or 0, 0),
            ("budget.max_tokens", self.budget.max_tokens or 0, 0),
            ("budget.max_cost", self.budget.max_cost or 0, 0),
        ):
            if value < low:
                raise ConfigError(f"{where} = {value}: must be at least {low}.")
        for where, value in (
            ("anchors.tolerance", self.anchors.tolerance),
            ("canaries.tolerance", self.canaries.tolerance),
            ("canaries.max_flip_rate", self.canaries.max_flip_rate),
        ):
            if not 0 <= value <= 1:
                raise ConfigError(f"{where} = {value}: must be from 0 to 1.")
        budget = self.budget
        if budget.max_cost is not None and not (budget.input_price or budget.output_price):
            raise ConfigError(
                f"budget.max_cost = {budget.max_cost}: needs budget.input_price and output_price."
            )


def read_judge_config(path: Path) -> JudgeConfig:
    """Judge file -> config; relative paths resolve against the file's folder.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or an unusable value.
    """
    config = read_config(path, JudgeConfig, kind="judge file")
    rubric = Path(config.judge.rubric).expanduser()
    if rubric.suffix not in (".toml", ".md"):
        return config
    rubric = (path.resolve().parent / rubric).resolve()
    return replace(config, judge=replace(config.judge, rubric=str(rubric)))
