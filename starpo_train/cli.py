"""`starpo-train`: run, resume, export, explain, credit, behaviour, ope, score, judge, evaluate ..."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starpo_train.credit_command import add_credit
from starpo_train.errors import RankError, StarpoTrainError
from starpo_train.explain_command import add_explain
from starpo_train.gate_command import add_gate
from starpo_train.judge_command import add_judge
from starpo_train.ope_command import add_ope
from starpo_train.replay_command import add_replay
from starpo_train.report_command import add_report
from starpo_train.score_command import add_score

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, do it, and return the exit code."""
    from rich.console import Console

    parser = build_parser()
    options = parser.parse_args(arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return options.handler(options)
    except RankError:  # told already
        return EXIT_ERROR
    except StarpoTrainError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[bold red]error:[/] {_escape(str(error))}"
        )
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Every subcommand and its options."""
    parser = argparse.ArgumentParser(
        prog="starpo-train", description="Fine-tune on recorded trajectories, and gate the release."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("run", help="train as a run file says")
    command.add_argument("run_file", type=Path, metavar="RUN.toml")
    command.set_defaults(handler=_run)

    command = commands.add_parser("resume", help="go on with an interrupted run")
    command.add_argument("run_folder", type=Path, metavar="RUN_DIR")
    command.set_defaults(handler=_resume)

    command = commands.add_parser("export", help="write a run's model, or its adapter, to ship it")
    command.add_argument("run_folder", type=Path, metavar="RUN_DIR")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    command.add_argument("--adapter", action="store_true", help="only the LoRA, as peft has it")
    command.set_defaults(handler=_export)

    add_explain(commands.add_parser("explain", help="say what a dataset allows, and why"))
    add_credit(commands.add_parser("credit", help="say what each step earned or lost"))

    command = commands.add_parser(
        "behaviour", help="log-probabilities of the policy that acted, where none were recorded"
    )
    command.add_argument("behaviour_file", type=Path, metavar="BEHAVIOUR.toml")
    command.set_defaults(handler=_behaviour)

    add_ope(commands.add_parser("ope", help="say what a checkpoint would have earned"))

    add_replay(commands.add_parser("replay", help="would a checkpoint act as successes did?"))

    add_score(commands.add_parser("score", help="score recorded runs, step by step"))

    command = commands.add_parser("evaluate", help="play tasks with a model and record every run")
    command.add_argument("evaluate_file", type=Path, metavar="EVAL.toml")
    command.set_defaults(handler=_evaluate)

    add_judge(commands.add_parser("judge", help="score a dataset with a pinned LLM judge"))

    command = commands.add_parser("serve", help="serve a model with OpenAI's chat API")
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=0, help="0 takes a free one")
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--max-batch", type=int, default=32)
    command.add_argument("--ready-file", type=Path)
    command.set_defaults(handler=_serve)

    add_gate(commands.add_parser("gate", help="may the candidate ship?"))
    add_report(commands.add_parser("report", help="write one HTML page about a release"))
    return parser


def _run(options: argparse.Namespace) -> int:
    from starpo_train.config import read_run_config

    return _train(read_run_config(options.run_file), resume=False)


def _resume(options: argparse.Namespace) -> int:
    from rich.console import Console

    from starpo_train.checkpoint import list_checkpoints
    from starpo_train.ranks import read_ranks
    from starpo_train.run_folder import RunFolder, read_resumed_config

    config = read_resumed_config(options.run_folder)
    folder = RunFolder(config.run.output).checkpoints_path
    if not list_checkpoints(folder) and read_ranks().is_first:
        line = f"no committed checkpoint in {folder}; starting from the beginning"
        Console(highlight=False, soft_wrap=True).print(line, markup=False)
    return _train(config, resume=True)


def _train(config: Any, *, resume: bool) -> int:
    from transformers.utils.logging import disable_progress_bar

    from starpo_train.progress import TrainingDisplay
    from starpo_train.ranks import read_ranks
    from starpo_train.run import train

    disable_progress_bar()  # one bar is enough
    is_first = read_ranks().is_first
    try:
        if not is_first:
            result = train(config, resume=resume)
        else:
            with TrainingDisplay() as display:
                result = train(config, resume=resume, progress=display.show)
            display.print_end(result)
    except KeyboardInterrupt:
        if is_first:
            _print_interrupted(config.run.output)
        return EXIT_INTERRUPTED
    return EXIT_INTERRUPTED if result.interrupted else 0


def _print_interrupted(output: Path) -> None:
    from rich.console import Console

    from starpo_train.run_folder import RunFolder

    line = "interrupted before the first step; nothing was written"
    if RunFolder(output).config_path.is_file():
        line = f"interrupted; go on from the last checkpoint with: starpo-train resume {output}"
    Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)


def _export(options: argparse.Namespace) -> int:
    from rich.console import Console

    from starpo_train.export import export_adapter, export_model, find_checkpoint
    from starpo_train.run_folder import RunFolder, find_final_name

    run = options.run_folder
    source = find_checkpoint(run).name
    if RunFolder(run).is_run and find_final_name(run) is None:
        source += f" of a run that has not ended (starpo-train resume {run})"
    export = export_adapter if options.adapter else export_model
    path = export(options.run_folder, options.output, dtype=options.dtype)
    Console(highlight=False, soft_wrap=True).print(f"written: {path}, from {source}", markup=False)
    return 0


def _behaviour(options: argparse.Namespace) -> int:
    from transformers.utils.logging import disable_progress_bar

    from starpo_train.behaviour.command import run_behaviour
    from starpo_train.behaviour.settings import BehaviourConfig
    from starpo_train.tomlfile import read_config

    disable_progress_bar()
    config = read_config(options.behaviour_file, BehaviourConfig, kind="behaviour file")
    run_behaviour(config, again=f"starpo-train behaviour {options.behaviour_file}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from starpo_train.evaluation_display import EvaluationDisplay
    from starpo_train.rollout import evaluate, read_evaluate_config

    config = read_evaluate_config(options.evaluate_file)
    with EvaluationDisplay() as display:
        result = evaluate(config, progress=display.show)
    display.print_end(result)
    return 0


def _serve(options: argparse.Namespace) -> int:
    import logging

    from starpo_train.serve.server import serve

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    serve(
        options.model,
        host=options.host,
        port=options.port,
        threads=options.threads,
        max_batch=options.max_batch,
        ready_file=options.ready_file,
    )
    return 0


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    sys.exit(main())
