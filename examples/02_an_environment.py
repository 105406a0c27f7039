"""An environment of your own, evaluated: a desk where customers want their money back.

    python examples/02_an_environment.py

Two scripts play the policies, behind real HTTP. A model of yours needs only an evaluation file with
`environment = "02_an_environment.py:Desk"`: docs/environments.md.
"""

import json
import tempfile
from pathlib import Path

from starpo_trace.testing import Reply, ScriptedServer, ToolCall
from starpo_train.environments import ToolEnvironment, ToolError, ToolTask
from starpo_train.evaluation_file import EndpointSection, EvaluateConfig, EvaluateSection
from starpo_train.rollout import evaluate


def find(state: dict, order: str) -> dict:
    """Look an order up."""
    if order not in state["orders"]:
        raise ToolError(f"there is no order {order}")  # the model reads it and goes on
    return state["orders"][order]


def refund(state: dict, order: str) -> str:
    """Pay the price of an order back. Only what was delivered broken may be refunded."""
    find(state, order)["status"] = "refunded"
    return "done"


class Desk(ToolEnvironment):
    """Half of the customers are right. What counts is how the orders stand at the end."""

    name, version = "desk", "1"
    system = "You serve customers. Refund only orders whose status is broken."
    functions, writing = (find, refund), ("refund",)

    def list_tasks(self, split: str, count: int, seed: int) -> list[ToolTask]:
        return [
            ToolTask(
                id=f"{split}-{seed}-{n}",
                input={"status": "broken" if n % 2 else "fine", "price": 10 + n},
                cohort="refund" if n % 2 else "refuse",
                user_turns=[f"I want my money back for order {n}."],
                actions=[("refund", {"order": str(n)})] if n % 2 else [],
            )
            for n in range(count)
        ]

    def make_state(self, task: ToolTask) -> dict:
        return {"orders": {task.id.rpartition("-")[2]: dict(task.input)}}


def play_careful(body: dict, *, looks: bool = True) -> Reply:
    """A policy: chat messages -> its answer. The other one does not look before it pays."""
    order = next(m["content"] for m in body["messages"] if m["role"] == "user").split()[-1][:-1]
    results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
    arguments = json.dumps({"order": order})
    if looks and not results:
        return Reply(tool_calls=[ToolCall(id="1", name="find", arguments=arguments)])
    if len(results) == looks and (not looks or '"broken"' in results[0]):
        return Reply(tool_calls=[ToolCall(id="2", name="refund", arguments=arguments)])
    return Reply(content="It is settled.")


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(prefix="starpo-desk-"))
    for name, looks in (("careful", True), ("hasty", False)):
        with ScriptedServer(lambda body, looks=looks: play_careful(body, looks=looks)) as server:
            options = EvaluateSection(
                environment=f"{__file__}:Desk",
                endpoint=EndpointSection(base_url=server.base_url, model=name),
                policy_id=name,
                output=folder / name,
                tasks=10,
                attempts=2,
            )
            summary = evaluate(EvaluateConfig(evaluate=options)).summary
        print(f"{name}: success {summary['success_mean']:.0%}, dataset {folder / name / 'dataset'}")
