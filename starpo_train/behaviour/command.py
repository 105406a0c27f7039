"""`starpo-train behaviour`: fit or rescore, and print how far it can be believed."""

from rich.console import Console
from rich.table import Table

from starpo_train.behaviour.fit import fit_behaviour
from starpo_train.behaviour.rescore import rescore_behaviour
from starpo_train.behaviour.settings import BehaviourConfig
from starpo_train.behaviour.turns import Calibration
from starpo_train.progress import TrainingDisplay


def run_behaviour(config: BehaviourConfig, *, again: str, console: Console | None = None) -> None:
    """Do what the file says; `again` is the command that goes on after Ctrl-C.

    Raises:
        KeyboardInterrupt: stopped; the folds that were fitted are kept.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    output = config.behaviour.output
    if config.behaviour.method == "rescore":
        found = rescore_behaviour(config)
        console.print(f"{found.num_turns:,} turns scored by the weights that sampled them: exact")
        for reason, count in found.left_out.items():
            console.print(f"left out: {count:,} turns ({reason})", markup=False)
        if any(temperature != 1 for temperature in found.temperatures):
            console.print(
                f"sampled at temperatures {found.temperatures}: set data.logprobs = 'processed'",
                markup=False,
            )
    else:
        try:
            with TrainingDisplay(console) as display:
                calibrations = fit_behaviour(
                    config,
                    announce=lambda line: console.print(line, markup=False),
                    progress=display.show,
                )
        except KeyboardInterrupt:
            console.print(f"interrupted; go on with: {again}", markup=False)
            raise
        console.print(_draw(calibrations))
        console.print("estimated: only algorithm.estimated_logprobs = 'accept' takes them")
    console.print(
        f'written: {output}; a run takes it by [data] behaviour = "{output}"', markup=False
    )


def _draw(calibrations: list[Calibration]) -> Table:
    table = Table(title="held-out turns, nats per token")
    for name in ("model", "policy"):
        table.add_column(name)
    for name in ("turns", "tokens", "-log p", "entropy", "too sure by"):
        table.add_column(name, justify="right")
    for c in calibrations:
        table.add_row(
            c.model or "",
            c.policy_id or "",
            f"{c.num_turns:,}",
            f"{c.num_tokens:,}",
            f"{c.nll:.3f}",
            f"{c.entropy:.3f}",
            f"{c.overconfidence:+.3f}",
        )
    return table
