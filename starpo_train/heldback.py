"""Dataset's test split -> rows of tokens that a run scores, to see whether it unlearns what worked."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from starpo_train.config import RunConfig
from starpo_train.credit.assign import TokenizedTrajectories
from starpo_train.dataset import Trajectory, has_split
from starpo_train.dataset import read_trajectories as read_dataset_trajectories
from starpo_train.errors import DataError, ModelError
from starpo_train.leftout import LeftOut
from starpo_train.policy import Policy
from starpo_train.rows import tokenize_trajectories
from starpo_train.targets import number_tasks
from starpo_train.trainingdata import HeldBack

SPLIT: Final = "test"


def read_held_back(
    config: RunConfig, policy: Policy, *, threshold: float, longest: int
) -> tuple[HeldBack | None, str | None]:
    """Trajectories with a reward, good from `threshold` on; and what a person should know of them.

    Up to `diagnostics.held_back` of each kind that can be scored and have no row longer than `longest`,
    which training has none of. That there are none, or fewer, is no reason not to train.
    """
    samples = config.diagnostics.held_back
    if samples == 0:
        return None, None
    if config.data.split == SPLIT:
        return None, f"data.split is {SPLIT!r}, so that nothing is held back"
    if not has_split(config.data.dataset, SPLIT):
        return (
            None,
            f"the dataset has no split {SPLIT!r} (`starpo-trace export --test-fraction 0.2`)",
        )
    usable = [
        trajectory
        for trajectory in read_dataset_trajectories(config.data.dataset, split=SPLIT)
        if trajectory.reward is not None and trajectory.usable_for != "none"
    ]
    recorded = [t for t in usable if not t.lacks_ids(config.data.models)]
    usable = recorded or usable  # those that need no rendering, if there are any
    if not usable:
        return None, f"no trajectory of the split {SPLIT!r} has a trusted reward and content"
    reader = _Reader(config, policy, longest=longest)
    is_good = [_is_good(trajectory, threshold) for trajectory in usable]
    tokenized = reader.take(usable, draw_orders(is_good, seed=config.run.seed), samples=samples)
    note = reader.describe()
    if not tokenized.trajectories:
        return None, note or "nothing held back is as short as what is trained"
    held_back = HeldBack(
        trajectory_ids_N=[t.trajectory_id for t in tokenized.trajectories],
        rows=tokenized.rows,
        rows_of_N=tokenized.rows_of_N,
        is_good_N=np.array([_is_good(t, threshold) for t in tokenized.trajectories]),
        task_of_N=number_tasks(tokenized),
    )
    return held_back, note


def draw_orders(is_good_N: Sequence[bool], *, seed: int) -> list[list[int]]:
    """Places of the good trajectories and of the bad ones, each in a random order; the same for a seed."""
    good_N = np.asarray(is_good_N, dtype=bool)
    rng = np.random.default_rng([seed, len(good_N)])
    return [rng.permutation(np.flatnonzero(kind_N)).tolist() for kind_N in (good_N, ~good_N)]


class _Reader:
    """Trajectories -> those that can be scored, with their rows; counts the others."""

    def __init__(self, config: RunConfig, policy: Policy, *, longest: int) -> None:
        self._config, self._policy, self._longest = config, policy, longest
        self._faults: list[str] = []

    def take(
        self, trajectories: Sequence[Trajectory], orders: Sequence[Sequence[int]], *, samples: int
    ) -> TokenizedTrajectories:
        """The first `samples` of each order that can be scored, in the order of `trajectories`."""
        taken: dict[int, TokenizedTrajectories] = {}
        for order in orders:
            wanted, left = samples, list(order)
            while wanted and left:
                found = self._read(trajectories, left[:wanted])
                left = left[wanted:]
                wanted -= len(found)
                taken |= found
        joined = TokenizedTrajectories(trajectories=[], rows=[], rows_of_N=[])
        for place in sorted(taken):
            first, part = len(joined.rows), taken[place]
            joined.trajectories += part.trajectories
            joined.rows += part.rows
            joined.rows_of_N += [list(range(first, first + len(part.rows)))]
        return joined

    def describe(self) -> str | None:
        """Those that cannot be scored; None: all can."""
        if not self._faults:
            return None
        return f"{len(self._faults)} cannot be scored, such as: {self._faults[0]}"

    def _read(
        self, trajectories: Sequence[Trajectory], places: Sequence[int]
    ) -> dict[int, TokenizedTrajectories]:
        """Place -> the trajectory and its rows, where it fits; a fault is narrowed down by halves."""
        try:
            tokenized = tokenize_trajectories(
                [trajectories[place] for place in places],
                self._config.data,
                self._policy,
                model_path=self._config.model.path,
                left_out=LeftOut(),
                findings=Counter(),
            )
        except (DataError, ModelError) as error:
            if len(places) == 1:
                self._faults.append(str(error))
                return {}
            middle = len(places) // 2
            halves = places[:middle], places[middle:]
            return self._read(trajectories, halves[0]) | self._read(trajectories, halves[1])
        place_of = {trajectories[place].trajectory_id: place for place in places}
        found = {}
        for trajectory, rows_N in zip(tokenized.trajectories, tokenized.rows_of_N, strict=True):
            rows = [tokenized.rows[r] for r in rows_N]
            if max(row.num_tokens for row in rows) <= self._longest:
                found[place_of[trajectory.trajectory_id]] = TokenizedTrajectories(
                    trajectories=[trajectory], rows=rows, rows_of_N=[list(range(len(rows)))]
                )
        return found


def _is_good(trajectory: Trajectory, threshold: float) -> bool:
    return trajectory.reward is not None and trajectory.reward >= threshold
