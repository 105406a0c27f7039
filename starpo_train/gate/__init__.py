"""Two evaluated policies -> pairs by task -> comparisons -> PROMOTE, BLOCK or INCONCLUSIVE."""

from starpo_train.gate.decision import VERDICT_FILE, decide_release, run_gate
from starpo_train.gate.margins import GateConfig, read_gate_config
from starpo_train.gate.verdict import GateDecision, Verdict

__all__ = [
    "VERDICT_FILE",
    "GateConfig",
    "GateDecision",
    "Verdict",
    "decide_release",
    "read_gate_config",
    "run_gate",
]
