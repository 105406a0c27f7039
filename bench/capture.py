"""Which facts of a model call each instrumentation keeps: a table, found by running them.

    python bench/capture.py [--quick] [--json FILE] [--only NAMES] [--cache DIR]

`starpo_trace` and the other instrumentations of the OpenAI SDK play the same scenarios against the
same local HTTP server, each in the environment that `bench/overhead.py` uses, with the tracer
provider's default limits and message content on. Code looks for each fact in everything that was
exported (`bench/peers/facts.py` says what counts). `starpo_trace` writes the whole history with
every call here, except in the row about histories, where it runs with `history="delta"`, its
default for its own store. The run takes seconds, `--quick` or not.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from peers.environments import DEFAULT_CACHE, build_variables, prepare_environment, read_pins
from peers.facts import FACTS
from peers.server import ScenarioServer
from peers.setups import SETUPS

COLUMNS = ("ours", *(name for name, setup in SETUPS.items() if setup.is_peer))
DELTA_ROW = "history exported once"


def play_scenarios(name: str, cache: Path) -> dict[str, Any]:
    """Spans and log records of each scenario under one instrumentation."""
    setup = SETUPS[name]
    python = prepare_environment(setup.environment, cache)
    with ScenarioServer() as server:
        done = subprocess.run(
            [python, "-m", "peers.scenarios", name, server.base_url],
            env=build_variables(setup),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    return json.loads(done.stdout)


def judge_column(name: str, cache: Path) -> dict[str, str]:
    """Fact -> verdict for one instrumentation."""
    exported = play_scenarios(name, cache)
    verdicts = {fact: judge(exported[scenario]) for fact, scenario, judge in FACTS}
    if name == "ours":
        verdicts[DELTA_ROW] = judge_column("ours-delta", cache)[DELTA_ROW]
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description="Which facts each instrumentation keeps.")
    parser.add_argument("--quick", action="store_true", help="changes nothing: it takes seconds")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--only", help=f"columns, of {','.join(COLUMNS)}")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="environments' folder")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(COLUMNS)
    for name in names:
        if name not in COLUMNS:
            parser.error(f"{name!r}: use names of {', '.join(COLUMNS)}")
    columns = {name: judge_column(name, args.cache) for name in names}
    print(f"| | {' | '.join(SETUPS[name].title for name in names)} |")
    print(f"|---|{'---|' * len(names)}")
    for fact, _, _ in FACTS:
        print(f"| {fact} | {' | '.join(columns[name][fact] for name in names)} |")
    for name in names:
        num_kept = sum(verdict == "yes" for verdict in columns[name].values())
        print(f"\n{SETUPS[name].title}: {num_kept} of {len(FACTS)}", end="")
    print()
    missed = [fact for fact, verdict in columns.get("ours", {}).items() if verdict != "yes"]
    if args.json:
        results = {
            "versions": {
                environment: read_pins(environment)
                for environment in sorted({SETUPS[name].environment for name in names})
            },
            "facts": columns,
            "targets": [
                {
                    "name": "facts that starpo_trace does not keep",
                    "value": missed,
                    "target": [],
                    "met": not missed,
                }
            ],
        }
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
