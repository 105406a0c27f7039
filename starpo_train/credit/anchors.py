"""Message graphs -> the anchor of each turn: a hash of what the policy saw since its last answer.

Suffix: K turns (in row order).
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

from starpo_train.credit.turns import TokenizedTrajectories, TurnLayout
from starpo_train.dataset import MessageNode, Trajectory, read_message_graphs
from starpo_train.errors import DataError


def read_anchors(tokenized: TokenizedTrajectories, layout: TurnLayout, dataset: Path) -> list[str]:
    """[K], equal for turns that saw the same observation.

    Raises:
        DataError: the messages of a turn were not recorded.
    """
    ids = [trajectory.trajectory_id for trajectory in tokenized.trajectories]
    graphs = read_message_graphs(dataset, ids)
    anchors_K = [""] * len(layout.turn_K)
    for trajectory, places in zip(tokenized.trajectories, layout.places_N, strict=True):
        graph = graphs.get(trajectory.trajectory_id, {})
        nodes = {turn.turn: turn.input_node for turn in trajectory.turns}
        for k in places.tolist():
            anchors_K[k] = find_anchor(trajectory, layout.turn_K[k], nodes[layout.turn_K[k]], graph)
    return anchors_K


def find_anchor(
    trajectory: Trajectory, turn: int, node_id: str | None, graph: Mapping[str, MessageNode]
) -> str:
    """Hash of the messages between the policy's last answer and one turn, ids of calls left out.

    The node of the prompt's last message identifies the whole history; the anchor is what is new in
    it, so that one state reached in two ways is one state. A prompt that ends in an answer has that
    answer in its anchor.

    Raises:
        DataError: the messages of the turn were not recorded.
    """
    digest = blake2b(digest_size=16)
    num_messages = 0
    while node_id is not None and (node := graph.get(node_id)) is not None:
        if num_messages and node.message.get("role") == "assistant":
            break
        digest.update(json.dumps(_drop_call_ids(node.message), sort_keys=True).encode())
        num_messages += 1
        node_id = node.parent_id
    if num_messages == 0:
        raise DataError(
            f"trajectory {trajectory.trajectory_id}, turn {turn}: no message before it was recorded, "
            "and algorithm.advantage = 'gigpo' compares turns that saw the same; record content, or "
            "choose another advantage."
        )
    return digest.hexdigest()


def _drop_call_ids(message: dict[str, object]) -> dict[str, object]:
    """Ids of tool calls are new in every run."""
    parts = message.get("parts")
    if not isinstance(parts, list):
        return message
    plain = [
        {key: value for key, value in part.items() if key != "id"}
        if isinstance(part, dict) and part.get("type") == "tool_call_response"
        else part
        for part in parts
    ]
    return {**message, "parts": plain}
