"""Dataset -> findings: common mistakes of training agents on trajectories, each a named check."""

from starpo_train.guards.finding import GuardFinding
from starpo_train.guards.registry import run_guards

__all__ = ["GuardFinding", "run_guards"]
