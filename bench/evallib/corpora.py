"""Recorded benchmark runs in ../shared/data -> facts for evaluators, and what each run was worth.

Rewards are kept apart from the facts: what an evaluator sees holds none, and observations that tell
the reward (FireAct's last) are left out.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[3] / "shared" / "data"
WRITES = (
    *("book_reservation", "cancel_reservation", "send_certificate", "update_reservation_baggages"),
    *("update_reservation_flights", "update_reservation_passengers"),
)
"""Airline tools that change the database, as tau-bench's environment defines them."""

_ACTION = re.compile(r"\s*Action:\s*(\w+)\[(.*)\]\s*\Z", re.DOTALL)
_TOLD = re.compile(r"Episode finished, reward = ")
_EXECUTE = re.compile(r"<execute>(.*?)</execute>", re.DOTALL)
_SOLUTION = re.compile(r"<solution>(.*?)</solution>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One recorded run."""

    policy: str
    task: str
    reward: float
    facts: dict[str, Any]


def read_airline() -> list[Run]:
    """200 runs of gpt-4o on tau-bench airline, with the actions that each task expects."""
    folder = DATA / "tau-bench-gpt4o-airline" / "historical_trajectories"
    runs = []
    for run in json.loads((folder / "gpt-4o-airline.json").read_text()):
        task = run["info"]["task"]
        calls = [{"name": a["name"], "arguments": a["kwargs"]} for a in task["actions"]]
        runs.append(
            Run(
                policy="gpt-4o",
                task=str(run["task_id"]),
                reward=float(run["reward"]),
                facts={
                    "trajectory": run["traj"],
                    "expected_calls": calls,
                    "required_outputs": task["outputs"],
                },
            )
        )
    return runs


def read_fireact() -> list[Run]:
    """HotpotQA runs of three fine-tuned policies; the reward is the exact match."""
    runs = []
    for name, text in _read_archive("fireact-hotpotqa.tar.gz", ".json"):
        policy = re.search(r"(gpt-3\.5|13b|7b-d)", name.replace("llama-2-7b", "7b"))
        for task, run in json.loads(text).items():
            steps, answer = _read_react(run["traj"])
            facts = {"trajectory": steps, "output": answer, "expected_output": run["gt"]}
            runs.append(
                Run(
                    policy=policy[0] if policy else name,
                    task=task,
                    reward=float(run["em"]),
                    facts={key: value for key, value in facts.items() if value is not None},
                )
            )
    return runs


def read_mint(environment: str) -> list[Run]:
    """MINT's runs of two models at turn budgets 1 to 5, each a policy; the reward is success."""
    runs = []
    for name, text in _read_archive("mint-bench-outputs.tar.gz", f"{environment}/results.jsonl"):
        model = "gpt-3.5" if "gpt-3.5" in name else "mistral-7b"
        budget = int(re.search(r"/max(\d)_", name)[1])  # type: ignore[index]
        for line in text.splitlines():
            run = json.loads(line)
            steps, answer = _read_code(run["state"]["history"][1:])
            facts: dict[str, Any] = {"trajectory": steps, "max_steps": budget}
            if answer is not None:
                facts["output"] = answer
            if environment == "gsm8k":  # alfworld's reference is code, not an answer
                facts["expected_output"] = str(run["task"]["reference"])
            runs.append(
                Run(
                    policy=f"{model}, {budget} turns",
                    task=str(run["task"]["task_id"]),
                    reward=float(run["state"]["success"]),
                    facts=facts,
                )
            )
    return runs


def read_intercode() -> list[Run]:
    """InterCode's interactive SQL and Bash runs; the reward is the greatest of the turns."""
    runs = []
    for name, text in _read_archive("intercode-results.tar.gz", ".json"):
        policy = Path(name).stem.replace("ic_", "").replace("_10_turns", "")
        for run in json.loads(text).values():
            turns = run["turn_history"]
            steps = [
                {
                    "tool": "execute",
                    "arguments": {"command": action},
                    "observation": str(observation),
                    "success": bool(valid),
                }
                for action, observation, valid in zip(
                    turns["actions"], turns["observations"], turns["valid_action"], strict=False
                )
            ]
            runs.append(
                Run(
                    policy=policy,
                    task=f"{run['dataset']} {run['task_id']}",
                    reward=float(run["summary"]["max_reward"]),
                    facts={"trajectory": steps, "max_steps": run["summary"]["turns_max"]},
                )
            )
    return runs


def _read_archive(name: str, ending: str) -> Iterator[tuple[str, str]]:
    with tarfile.open(DATA / name) as archive:
        for member in sorted(archive.getmembers(), key=lambda each: each.name):
            file = archive.extractfile(member) if member.name.endswith(ending) else None
            if file is not None:
                yield member.name, file.read().decode()


def _read_react(recorded: Any) -> tuple[list[dict[str, Any]], str | None]:
    """ReAct text or messages -> steps, and what `finish[...]` gave."""
    if isinstance(recorded, list):
        text = "\n".join(message["content"] for message in recorded[1:])
    else:
        text = recorded.partition("### Response:")[2]
    steps: list[dict[str, Any]] = []
    answer = None
    for block in re.split(r"(?m)^(?=Thought:)", text):
        body, _, observation = block.partition("Observation:")
        found = _ACTION.search("\n" + body[body.find("Action:") :] if "Action:" in body else "")
        if found is None:
            continue
        if found[1] == "finish":
            answer = found[2]
            continue
        step = {"tool": found[1], "arguments": {"query": found[2].strip()}}
        if observation.strip() and not _TOLD.search(observation):
            step["observation"] = observation.strip()
        steps.append(step)
    return steps, answer


def _read_code(messages: list[dict[str, str]]) -> tuple[list[dict[str, Any]], str | None]:
    """MINT's chat -> steps with the code that was run, and the last solution proposed."""
    steps: list[dict[str, Any]] = []
    answer = None
    for message in messages:
        if message["role"] == "assistant":
            code = _EXECUTE.search(message["content"])
            solutions = _SOLUTION.findall(message["content"])
            answer = solutions[-1].strip() if solutions else answer
            step: dict[str, Any] = {"text": ""}
            if code:
                step = {"tool": "execute", "arguments": {"code": code[1].strip()}}
            steps.append(step)
        elif steps and "tool" in steps[-1]:
            observation = message["content"].removeprefix("Observation:").strip()
            steps[-1]["observation"] = observation
            steps[-1]["success"] = "Traceback" not in observation and "Error:" not in observation
    return steps, answer
