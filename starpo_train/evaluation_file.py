"""An evaluation file: who plays what, how often, and where it is kept."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from starpo_train.environments.endpoint import Endpoint, Sampling
from starpo_train.errors import ConfigError
from starpo_train.tomlfile import read_config

_KEY_VARIABLE: Final = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSection:
    """`[evaluate.endpoint]`: an OpenAI-compatible API that serves the policy already."""

    base_url: str
    """`.../v1`."""
    model: str
    """As the API calls it."""
    api_key_env: str = _KEY_VARIABLE
    """Variable that holds the key; APIs without one need none."""
    max_retries: int = 4
    """Of requests that were refused for now."""
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Refuse what no request could be sent to."""
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"evaluate.endpoint.base_url = {self.base_url!r}: must begin with http:// or https://."
            )

    def open(self) -> Endpoint:
        """With its key.

        Raises:
            ConfigError: the variable that was named holds none.
        """
        key = os.environ.get(self.api_key_env)
        if not key and self.api_key_env != _KEY_VARIABLE:
            raise ConfigError(
                f"evaluate.endpoint.api_key_env = {self.api_key_env!r}: there is no such environment "
                "variable; set it, or leave the key out for an API without one."
            )
        return Endpoint(
            base_url=self.base_url,
            model=self.model,
            api_key=key or "none",
            max_retries=self.max_retries,
            timeout_s=self.timeout_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSection:
    """Who plays what, how often, and where it is kept."""

    output: Path
    """Folder for traces, dataset and summary."""
    policy_id: str
    """Which policy this is, in the traces and in reports."""
    agent: Path | None = None
    """The agent's Python file, or"""
    environment: str | None = None
    """an environment: module:attribute | file.py:attribute | gymnasium:ID | inspect:TASK |
    verifiers:TASKSET."""
    environment_args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    model: str | None = None
    """Model folder to serve, or the name of a model in the hub's local cache; or"""
    endpoint: EndpointSection | None = None
    """where it is served already."""
    player: Literal["model", "oracle", "null"] = "model"
    """Who plays an environment: `oracle` gives its own solutions and must solve every task, `null`
    gives empty answers and must solve none; the gate's preflight. Neither needs a model."""
    sampling: Sampling = field(default_factory=Sampling)
    """How an environment's loop draws answers; an agent file says so itself."""
    max_turns: int | None = None
    """Answers of the model in one run of an environment; then it is truncated."""
    split: str = "test"
    """Passed to `tasks`."""
    tasks: int = 100
    attempts: int = 4
    """Runs of each task, each with its own seed."""
    concurrency: int = 16
    """Runs at the same time, and rows the server decodes at once."""
    seed: int = 0
    """Chooses the tasks and, with task and attempt, each run's own seed."""
    threads: int = 1
    """Torch threads of the server."""

    @property
    def played(self) -> str:
        """What is played, in words of the file."""
        return str(self.agent or self.environment)

    @property
    def model_name(self) -> str:
        """What requests name as their model."""
        if self.player != "model":
            return self.player
        return self.endpoint.model if self.endpoint else str(self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """One evaluation file: the table `[evaluate]` and those below it."""

    evaluate: EvaluateSection

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, and counts that nothing could be done with."""
        options = self.evaluate
        for key in ("tasks", "attempts", "concurrency", "threads", "max_turns"):
            value = getattr(options, key)
            if value is not None and value < 1:
                raise ConfigError(f"evaluate.{key} = {value}: must be at least 1.")
        _require_one(agent=options.agent, environment=options.environment)
        if options.player == "model":
            _require_one(model=options.model, endpoint=options.endpoint)
        elif options.model is not None or options.endpoint is not None:
            raise ConfigError(
                f"evaluate.player = {options.player!r} needs no model and no endpoint; leave them out."
            )
        if options.agent is not None:
            for key, default in (
                ("environment_args", {}),
                ("sampling", Sampling()),
                ("max_turns", None),
                ("player", "model"),
            ):
                if getattr(options, key) != default:
                    raise ConfigError(
                        f"evaluate.{key} goes with evaluate.environment; an agent file "
                        f"({options.agent.name}) decides that itself."
                    )


def _require_one(**given: Any) -> None:
    (first, _), (second, _) = given.items()
    found = [key for key, value in given.items() if value is not None]
    if len(found) != 1:
        said = "are both there" if found else "are both missing"
        raise ConfigError(f"evaluate.{first} and evaluate.{second} {said}; give one of them.")


def read_evaluate_config(path: Path) -> EvaluateConfig:
    """Evaluation file -> config; relative paths resolve against the file's folder.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or an unusable value.
    """
    config = read_config(path, EvaluateConfig, kind="evaluation file")
    adapter, _, name = (config.evaluate.environment or "").rpartition(":")
    prefix, _, file = adapter.rpartition(":")  # inspect:file.py:task
    if not file.endswith(".py"):
        return config
    file = str((path.resolve().parent / Path(file).expanduser()).resolve())
    spec = ":".join(filter(None, (prefix, file, name)))
    return replace(config, evaluate=replace(config.evaluate, environment=spec))
