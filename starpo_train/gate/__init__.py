"""Two evaluated policies -> pairs by task -> comparisons -> PROMOTE, BLOCK or INCONCLUSIVE."""

from starpo_train.gate.decision import decide_paired, decide_release
from starpo_train.gate.margins import GateConfig, read_gate_config
from starpo_train.gate.run import VERDICT_FILE, GateExtras, run_gate
from starpo_train.gate.verdict import GateDecision, Verdict

__all__ = [
    "VERDICT_FILE",
    "GateConfig",
    "GateDecision",
    "GateExtras",
    "Verdict",
    "decide_paired",
    "decide_release",
    "read_gate_config",
    "run_gate",
]
