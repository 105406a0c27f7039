"""Progress of an evaluation -> a terminal."""

from typing import Any

from starpo_train.bars import StageDisplay


class EvaluationDisplay(StageDisplay):
    """A progress bar over the runs of an evaluation."""

    def show(self, progress: Any) -> None:
        """Take a `starpo_train.rollout.Progress`."""
        note = f"{progress.num_successes} succeeded" if progress.num_successes else ""
        if progress.num_failed:
            note += f", {progress.num_failed} failed to run"
        self.show_stage(
            progress.stage, num_done=progress.num_done, num_all=progress.num_runs, note=note
        )

    def print_end(self, result: Any) -> None:
        """Take a `starpo_train.rollout.EvaluateResult`: say what was found and where it is."""
        summary = result.summary
        line = f"{summary['policy_id']}: {summary['num_tasks']} tasks"
        if summary.get("success_mean") is not None:
            line += f", success {summary['success_mean']:.1%}"
        if summary.get("success_ci95"):
            low, high = summary["success_ci95"]
            line += f" [{low:.1%}, {high:.1%}]"
        self._console.print(line, markup=False, soft_wrap=True)
        if summary["num_missing"]:
            line = (
                f"without a reward: {summary['num_missing']} runs, played again at the next start"
            )
            if summary["failures"]:
                line += f"; the last failed with: {summary['failures'][-1]}"
            self._console.print(line, markup=False, soft_wrap=True)
        self._console.print(f"written: {result.summary_path}", markup=False, soft_wrap=True)
