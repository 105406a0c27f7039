"""Every check, in one list, run over one dataset."""

from collections.abc import Sequence

from starpo_train.dataset import Manifest, Trajectory
from starpo_train.guards.benchmark import (
    check_saturated_benchmark,
    check_single_turn,
    check_token_cost_doubled,
)
from starpo_train.guards.confounding import check_confounding_by_policy_version
from starpo_train.guards.evidence import check_reward_leakage, check_thoughts_scored_as_evidence
from starpo_train.guards.finding import SEVERITIES, GuardFinding
from starpo_train.guards.freshness import check_id_ood_mixed, check_stale_rollouts
from starpo_train.guards.judges import check_judge_drifting, check_judge_not_pinned
from starpo_train.guards.reading import read_runs, read_texts
from starpo_train.guards.signal import (
    check_open_ended_surface,
    check_terminal_reward_only,
    check_zero_variance,
)

GUARDS = (
    *("terminal_reward_only", "thoughts_scored_as_evidence", "stale_rollouts"),
    *("judge_not_pinned", "judge_drifting", "id_ood_mixed", "zero_variance", "reward_leakage"),
    *("confounding_by_policy_version", "saturated_benchmark", "single_turn"),
    *("open_ended_surface", "token_cost_doubled"),
)
"""Names of all checks."""


def run_guards(
    trajectories: Sequence[Trajectory],
    manifest: Manifest,
    *,
    policy_id: str | None = None,
    baseline_policy_id: str | None = None,
    now_ns: int | None = None,
) -> list[GuardFinding]:
    """Trajectories of a dataset, and its manifest -> what the checks found, worst first.

    Args:
        trajectories: as `read_trajectories` gave them.
        manifest: of the dataset they are from; rewards and texts are read through it.
        policy_id: the policy that is trained, as the runs name it; default: the newest of them.
        baseline_policy_id: whose token costs are the measure; default: the oldest of them.
        now_ns: what ages are counted from, Unix time; default: now.

    Raises:
        DataError: the dataset's tables are not those of the manifest.
    """
    runs = read_runs(manifest, trajectories)
    texts = read_texts(manifest, runs)
    found = [
        check_terminal_reward_only(runs),
        check_thoughts_scored_as_evidence(runs, texts),
        check_stale_rollouts(runs, policy_id=policy_id, now_ns=now_ns),
        check_judge_not_pinned(runs),
        check_judge_drifting(runs),
        check_id_ood_mixed(runs),
        check_zero_variance(runs),
        check_reward_leakage(texts),
        check_confounding_by_policy_version(runs),
        check_saturated_benchmark(runs),
        check_single_turn(runs),
        check_open_ended_surface(runs),
        check_token_cost_doubled(runs, policy_id=policy_id, baseline_policy_id=baseline_policy_id),
    ]
    findings = [finding for finding in found if finding is not None]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
