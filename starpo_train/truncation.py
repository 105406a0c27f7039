"""Trajectories that a limit cut short -> those that are trained on.

When time ran out, the reward says that the task was not done, not which turn was wrong: pushed down as a
whole, good turns suffer with the bad. TRL and DAPO leave such answers out of the loss for this reason.
"""

from collections.abc import Sequence
from typing import Literal

from starpo_train.dataset import Trajectory

Truncated = Literal["keep", "drop", "drop_failed"]


def leave_out_truncated(
    trajectories: Sequence[Trajectory], how: Truncated, *, threshold: float
) -> list[Trajectory]:
    """Those that are left; `drop_failed` leaves out what was cut with a reward below the threshold."""
    if how == "keep":
        return list(trajectories)
    return [
        trajectory
        for trajectory in trajectories
        if trajectory.end != "truncated"
        or (
            how == "drop_failed"
            and trajectory.reward is not None
            and trajectory.reward >= threshold
        )
    ]
