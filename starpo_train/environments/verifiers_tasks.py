"""An environment of the verifiers library -> recorded runs. It has the loop and the rubric.

For its environments that are Python objects (`SingleTurnEnv`, `ToolEnv`, `MultiTurnEnv` ...), which
releases before 0.3 have: `env.rollout(input, client, model, sampling_args)`. Since then they are
programs that run elsewhere and ask a client made there, which nobody can watch from here.
"""

# pyright: reportMissingImports=false
# It is not installed beside everything else.

import asyncio
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import starpo_trace
from starpo_train.environments.endpoint import Endpoint, Sampling
from starpo_train.environments.protocol import Run, Task
from starpo_train.environments.recording import draw_seed, not_recorded, recorded, seeded
from starpo_train.errors import EnvironmentFailedError, RolloutError

_LIMITS: Final = ("max_turns", "too_long", "timeout", "timed_out", "max_total")


class VerifiersEnvironment:
    """`verifiers:ENV`, as in `verifiers.load_environment(ENV, **env_args)`.

    Args:
        env_id: Name of an installed environment.
        version: Recorded with the runs; default that of the installed package, where it is one.
        env_args: Arguments of its `load_environment`.

    Raises:
        RolloutError: verifiers is not installed or of another kind, there is no such environment, or
            its rewards are those of groups.
    """

    def __init__(self, env_id: str, *, version: str | None = None, **env_args: Any) -> None:
        if importlib.util.find_spec("verifiers") is None:
            raise RolloutError("verifiers is missing: pip install 'verifiers<0.3'")
        import verifiers

        load = getattr(verifiers, "load_environment", None)
        if load is None:
            raise RolloutError(
                f"verifiers {verifiers.__version__} runs environments as programs of their own, whose "
                "calls cannot be recorded from here: pip install 'verifiers<0.3'"
            )
        try:
            self._env = load(env_id, **env_args)
        except Exception as error:
            raise RolloutError(f"verifiers:{env_id} with {env_args}: {error!r}") from error
        if self._env.requires_group_rollouts:
            raise RolloutError(
                f"verifiers:{env_id}: its rubric compares the runs of a group with each other, so a "
                "run has no reward of its own"
            )
        self.name = env_id
        self.version = version or _find_version(env_id)

    def tasks(self, split: str, count: int, seed: int) -> list[Task]:
        """Rows of its evaluation data, of its training data for `split = "train"`."""
        rows = self._env.get_dataset() if split == "train" else self._env.get_eval_dataset()
        numbers = list(range(len(rows)))
        if count < len(numbers):
            numbers = sorted(Random(seed).sample(numbers, count))  # noqa: S311
        return [
            Task(id=f"{self.name}/{split}/{row.get('example_id', number)}", input=row)
            for number, row in ((number, rows[number]) for number in numbers)
        ]

    def play_runs(
        self,
        runs: Sequence[Run],
        endpoint: Endpoint,
        sampling: Sampling,
        *,
        concurrency: int,
        max_turns: int | None,
        folder: Path,
    ) -> None:
        """All runs in one event loop."""
        _ = folder
        if max_turns is not None:
            if not hasattr(self._env, "max_turns"):
                raise RolloutError(f"evaluate.max_turns: {self.name} has no turns to limit")
            self._env.max_turns = max_turns
        asyncio.run(self._play_all(runs, endpoint, sampling, concurrency))

    async def _play_all(
        self, runs: Sequence[Run], endpoint: Endpoint, sampling: Sampling, concurrency: int
    ) -> None:
        import openai

        places = asyncio.Semaphore(concurrency)
        async with openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=endpoint.api_key,
            max_retries=endpoint.max_retries,
            timeout=endpoint.timeout_s,
        ) as connection:
            client = _connect(connection)

            async def play(run: Run) -> None:
                async with places:
                    if run.is_stopped:
                        return
                    try:
                        await self._play(run, client, endpoint.model, sampling)
                    except Exception as error:  # noqa: BLE001 (the run carries it)
                        run.fail(error)

            await asyncio.gather(*(play(run) for run in runs))

    async def _play(self, run: Run, client: Any, model: str, sampling: Sampling) -> None:
        request = sampling.build_request(seed=run.seed)
        with run.record() as trajectory:
            with seeded(run.seed), not_recorded():
                state = await self._env.rollout(dict(run.task.input), client, model, request)
            _refuse_error(self.name, run, state)
            messages = [*(state.get("prompt") or ()), *(state.get("completion") or ())]
            if messages and _role_of(messages[-1]) != "assistant":
                seen, _ = await client.to_native_prompt(messages)
                starpo_trace.observe(seen)
            reason = state.get("stop_condition")
            is_cut = state.get("is_truncated") or any(word in str(reason) for word in _LIMITS)
            trajectory.end("truncated" if is_cut else "terminated", reason=reason)
        with not_recorded():  # judges
            await self._env.rubric.score_rollout(state)
            await self._env.rubric.cleanup(state)
        _refuse_error(self.name, run, state)
        reward = float(state["reward"])
        common: dict[str, Any] = {"trajectory_id": trajectory.id, "task_id": run.task.id}
        starpo_trace.reward(reward, **common)
        for name, value in (state.get("metrics") or {}).items():
            if name != "reward":
                starpo_trace.reward(float(value), name=name, **common)
        run.finish(reward)


def _refuse_error(name: str, run: Run, state: Any) -> None:
    """What verifiers caught is no reward of 0."""
    error = state.get("error")
    if error is not None:
        raise EnvironmentFailedError(
            f"verifiers:{name} failed at task {run.task.id!r}, attempt {run.number}: {error!r}"
        )


def _connect(connection: Any) -> Any:
    """Client of verifiers', whose calls are recorded, each with a seed of its own."""
    from verifiers.clients.openai_chat_completions_client import OpenAIChatCompletionsClient

    class RecordedClient(OpenAIChatCompletionsClient):
        async def get_native_response(
            self, prompt: Any, model: str, sampling_args: Any, *args: Any, **kwargs: Any
        ) -> Any:
            ask = super().get_native_response
            seed = draw_seed()
            if seed is None:  # a judge, who was given the same client
                return await ask(prompt, model, sampling_args, *args, **kwargs)
            with recorded():
                return await ask(prompt, model, {**sampling_args, "seed": seed}, *args, **kwargs)

    return RecordedClient(connection)


def _role_of(message: Any) -> str | None:
    return message.get("role") if isinstance(message, dict) else getattr(message, "role", None)


def _find_version(env_id: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(env_id.rpartition("/")[2])
    except PackageNotFoundError:
        return None
