"""Recorded turns -> the same turns rendered by a chat template, and where the two differ.

What was recorded is trained on as it is. A difference says that the model will read something else
when it is served with this template: another template, other tools, a history that was rewritten.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from starpo_trace.convert.writers.chatmessages import UnwritableError
from starpo_train.chattemplate import TemplateRefusalError
from starpo_train.dataset import MessageNode, Trajectory, Turn, read_message_graphs
from starpo_train.render import RenderedTrajectory, RenderedTurn, TurnRenderer
from starpo_train.tree import count_shared

_AROUND: Final = 6
"""Tokens shown on either side of a difference."""


@dataclass(slots=True, kw_only=True)
class TrajectoryDrift:
    """One trajectory as recorded and as rendered."""

    trajectory_id: str
    num_recorded: int = 0
    """Turns with recorded ids."""
    num_rendered: int = 0
    """Of those, turns whose messages the template renders; the other counts are among these."""
    num_prompts_equal: int = 0
    """The prompt's ids are the recorded ones."""
    num_answers_equal: int = 0
    """The answer's ids are the recorded ones."""
    num_retokenized_equal: int = 0
    """Of all recorded turns: the answer's ids, decoded and tokenized again, are the same."""
    findings: dict[str, int] = field(default_factory=dict)
    """What the template does to the turns without recorded ids: finding -> turns."""
    left_out: str | None = None
    """Why it would not be trained on."""
    first_difference: dict[str, Any] | None = None
    """Of prompts: turn, position, and the tokens around it as text, recorded and rendered."""
    examples: dict[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """For one line of JSON."""
        return asdict(self)


def measure_trajectory(
    trajectory: Trajectory,
    graph: dict[str, MessageNode],
    renderer: TurnRenderer,
    *,
    models: Sequence[str] = (),
    keep_lossy: bool = False,
) -> TrajectoryDrift:
    """Compare what was recorded with what the template renders, turn by turn."""
    while True:
        drift, longest = _measure(trajectory, graph, renderer, models, keep_lossy=keep_lossy)
        if renderer.retokenizer.check(longest):
            return drift


def sample_drift(
    trajectories: Sequence[Trajectory],
    dataset: Path,
    renderer: TurnRenderer,
    *,
    models: Sequence[str] = (),
    limit: int = 32,
) -> dict[str, Any]:
    """Counts over some of the trajectories, evenly spread: what a run's start record tells."""
    places = np.linspace(0, len(trajectories) - 1, min(limit, len(trajectories))).astype(int)
    chosen = [trajectories[place] for place in places.tolist()]
    graphs = read_message_graphs(dataset, [t.trajectory_id for t in chosen])
    return summarize_drift(
        [
            measure_trajectory(t, graphs.get(t.trajectory_id, {}), renderer, models=models)
            for t in chosen
        ]
    )


def _measure(
    trajectory: Trajectory,
    graph: dict[str, MessageNode],
    renderer: TurnRenderer,
    models: Sequence[str],
    *,
    keep_lossy: bool,
) -> tuple[TrajectoryDrift, str]:
    """A trajectory's drift, and its longest text."""
    longest = ""
    drift = TrajectoryDrift(trajectory_id=trajectory.trajectory_id)
    if trajectory.lacks_ids(models):
        rendered = renderer.render_trajectory(trajectory, graph, models=models)
        drift.findings = dict(rendered.findings.most_common())
        drift.left_out = rendered.find_reason(keep_lossy=keep_lossy)
        drift.examples = rendered.examples
    for turn in trajectory.turns:
        if turn.response_ids_T is None or (models and turn.model not in models):
            continue
        drift.num_recorded += 1
        text = renderer.tokenizer.decode(turn.response_ids_T)
        same = np.array_equal(renderer.retokenizer.encode(text), turn.response_ids_T)
        drift.num_retokenized_equal += int(same)
        rendered_turn = _render(turn, graph, renderer)
        if rendered_turn is not None:
            drift.num_rendered += 1
            longest = max(longest, rendered_turn.prompt, key=len)
            _compare(turn, rendered_turn, renderer, drift)
    return drift, longest


def summarize_drift(drifts: Sequence[TrajectoryDrift]) -> dict[str, Any]:
    """Counts over trajectories, for the run's start record and for people."""
    findings: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for drift in drifts:
        findings.update(drift.findings.keys())
        if drift.left_out is not None:
            left_out[drift.left_out] += 1
    counts = ("recorded", "rendered", "prompts_equal", "answers_equal", "retokenized_equal")
    return {
        "num_trajectories": len(drifts),
        **{f"num_{name}": sum(getattr(d, f"num_{name}") for d in drifts) for name in counts},
        "findings": dict(findings.most_common()),
        "left_out": dict(left_out.most_common()),
    }


def _render(
    turn: Turn, graph: dict[str, MessageNode], renderer: TurnRenderer
) -> RenderedTurn | None:
    try:
        return renderer.render_turn(turn, graph, RenderedTrajectory())[0]
    except (UnwritableError, TemplateRefusalError):
        return None


def _compare(
    turn: Turn, rendered: RenderedTurn, renderer: TurnRenderer, drift: TrajectoryDrift
) -> None:
    encode = renderer.retokenizer.encode
    prompt_T, answer_T = encode(rendered.prompt), encode(rendered.answer)
    assert turn.prompt_ids_T is not None  # noqa: S101 (response ids are recorded)
    assert turn.response_ids_T is not None  # noqa: S101
    drift.num_answers_equal += int(np.array_equal(answer_T, turn.response_ids_T))
    at = count_shared(turn.prompt_ids_T, prompt_T)
    if at == len(turn.prompt_ids_T) == len(prompt_T):
        drift.num_prompts_equal += 1
    elif drift.first_difference is None:
        around = slice(max(0, at - _AROUND), at + _AROUND)
        drift.first_difference = {
            "turn": turn.turn,
            "position": at,
            "recorded": renderer.tokenizer.decode(turn.prompt_ids_T[around]),
            "rendered": renderer.tokenizer.decode(prompt_T[around]),
        }
