"""Trajectories -> rows of tokens, recorded or rendered, that a model can take."""

from collections import Counter
from collections.abc import Sequence

from starpo_train.behaviour.table import Behaviour
from starpo_train.config import DataSection
from starpo_train.credit.assign import TokenizedTrajectories
from starpo_train.dataset import Trajectory, read_message_graphs
from starpo_train.errors import DataError
from starpo_train.leftout import LeftOut
from starpo_train.policy import Policy
from starpo_train.render import TurnRenderer
from starpo_train.tokens import TokenSequence, tokenize_trajectory


def tokenize_trajectories(
    trajectories: Sequence[Trajectory],
    data: DataSection,
    policy: Policy,
    *,
    model_path: str,
    left_out: LeftOut,
    findings: Counter[str],
    at_temperature: bool = False,
    estimates: Behaviour | None = None,
) -> TokenizedTrajectories:
    """Rows of every trajectory that has some and that the model can take.

    The others are counted in `left_out`, what the chat template does to them in `findings`.

    Raises:
        ModelError: messages must be rendered and the model has no chat template.
        DataError: an id is outside the model's vocabulary.
    """
    models = data.models
    missing = [t.trajectory_id for t in trajectories if t.lacks_ids(models)]
    graphs, renderer = {}, None
    if missing:
        renderer = TurnRenderer(policy.tokenizer, model_path=model_path)
        graphs = read_message_graphs(data.dataset, missing)
    limit = getattr(policy.model.config, "max_position_embeddings", None) or 1 << 62
    left_out.limit = limit
    kept = TokenizedTrajectories(trajectories=[], rows=[], rows_of_N=[])
    for position, trajectory in enumerate(trajectories):
        turns = None
        if renderer is not None and trajectory.lacks_ids(models):
            graph = graphs.get(trajectory.trajectory_id, {})
            rendered = renderer.render_trajectory(trajectory, graph, models=models)
            findings.update(rendered.findings.keys())
            reason = rendered.find_reason(keep_lossy=data.lossy_rendering == "keep")
            if reason is not None:
                left_out[reason] += 1
                continue
            turns = rendered.turns
        rows = tokenize_trajectory(
            trajectory,
            position=position,
            rendered=turns,
            models=models,
            at_temperature=at_temperature,
            estimate=None if estimates is None else estimates.find,
        )
        longest = max((row.num_tokens for row in rows), default=0)
        if not rows or longest > limit:
            left_out["too_long_for_model" if rows else "no_tokens"] += 1
            left_out.longest = max(left_out.longest, longest)
            continue
        _check_vocabulary(rows, trajectory, policy, model_path)
        kept.rows_of_N.append(list(range(len(kept.rows), len(kept.rows) + len(rows))))
        kept.rows += rows
        kept.trajectories.append(trajectory)
    return kept


def _check_vocabulary(
    rows: list[TokenSequence], trajectory: Trajectory, policy: Policy, model_path: str
) -> None:
    lowest = min(int(row.input_ids_T.min()) for row in rows)
    if lowest < 0:
        raise DataError(
            f"trajectory {trajectory.trajectory_id}: token id {lowest} is none; the dataset's "
            "token_provenance must not be 'exact' there. Export it again with this release."
        )
    highest = max(int(row.input_ids_T.max()) for row in rows)
    if highest >= policy.num_vocabulary:
        raise DataError(
            f"trajectory {trajectory.trajectory_id}: token id {highest} is outside the vocabulary "
            f"of {model_path!r} ({policy.num_vocabulary} ids); train the model that was "
            "recorded, or one with its tokenizer."
        )
