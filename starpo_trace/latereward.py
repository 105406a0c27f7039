"""`starpo-trace reward`'s options -> a reward that is on disk or with the endpoint, or an error."""

import argparse
import os
from math import isfinite
from typing import Final

from starpo_trace.errors import ConfigError, SourceError, StoreError

_TEXTS: Final = {
    "--trajectory": "trajectory",
    "--name": "name",
    "--task": "task",
    "--id": "reward_id",
    "--explanation": "explanation",
    "--verifier-digest": "verifier_digest",
}
_MAX_STEP: Final = 2**63 - 1


def record_late_reward(options: argparse.Namespace) -> str:
    """Record the reward, wait until it is acknowledged, and say what was recorded.

    Raises:
        ConfigError: an option cannot be used.
        SourceError: `--store` is no folder.
        StoreError: the reward was not recorded.
    """
    _check_texts(options)
    _check_value(options)
    _check_step(options)
    if options.store is not None and not options.store.is_dir():
        raise SourceError(f"--store {options.store}: no such folder; name the agent's trace store")
    import starpo_trace
    from starpo_trace.signing import find_keyring, read_keyring

    keyring = read_keyring(options.key_file) if options.key_file else find_keyring()
    starpo_trace.instrument(store=options.store)
    starpo_trace.reward(
        options.value,
        name=options.name,
        scope=options.scope,
        source=options.source,
        min=options.min,
        max=options.max,
        explanation=options.explanation,
        reward_id=options.reward_id,
        trajectory_id=options.trajectory,
        step=options.step,
        task_id=options.task,
        verifier_digest=options.verifier_digest,
        sign=keyring is not None,
        key=keyring,
    )
    is_flushed = starpo_trace.flush()
    _check_acknowledged(starpo_trace.stats(), is_flushed=is_flushed)
    signed = "" if keyring is None else f", signed with {keyring.key_ids[0]}"
    return f"{options.name} = {options.value:g} recorded for {options.trajectory}{signed}"


def _check_texts(options: argparse.Namespace) -> None:
    for option, name in _TEXTS.items():
        text = getattr(options, name)
        if text is None:
            continue
        if not text.strip() and option != "--explanation":
            raise ConfigError(f"{option} is empty; give a text or leave it out")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{option} {text!a}: is not UTF-8; give it in UTF-8, as the run was recorded"
            ) from None


def _check_value(options: argparse.Namespace) -> None:
    value, lowest, highest = options.value, options.min, options.max
    if not isfinite(value):
        raise ConfigError(f"--value {value}: a reward must be a finite number")
    for option, bound in (("--min", lowest), ("--max", highest)):
        if bound is not None and not isfinite(bound):
            raise ConfigError(f"{option} {bound}: give a finite number or leave it out")
    if lowest is not None and value < lowest:
        raise ConfigError(
            f"--value {value:g} is below --min {lowest:g}; it would count for nothing"
        )
    if highest is not None and value > highest:
        raise ConfigError(
            f"--value {value:g} is above --max {highest:g}; it would count for nothing"
        )


def _check_step(options: argparse.Namespace) -> None:
    if options.scope == "trajectory" and options.step is not None:
        raise ConfigError(
            f"--step {options.step}: a reward of the whole trajectory has none; give --scope turn "
            "or --scope step, or leave --step out"
        )
    if options.scope != "trajectory" and options.step is None:
        raise ConfigError(f"--scope {options.scope} needs --step, the step it belongs to")
    if options.step is not None and not 0 <= options.step <= _MAX_STEP:
        raise ConfigError(f"--step {options.step}: steps are numbered from 0 to {_MAX_STEP}")


def _check_acknowledged(counts: dict[str, int], *, is_flushed: bool) -> None:
    """A flush with nothing to wait for succeeds too, so what counts is what was acknowledged."""
    if counts["rejected"] or counts["dropped"]:
        raise StoreError(
            "the reward was refused for good and is not recorded; the store is full, or the "
            "endpoint does not take it"
        )
    if not counts["sent"]:
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            raise StoreError("the reward is not recorded: OTEL_SDK_DISABLED is true; unset it")
        raise StoreError(
            "the reward is not recorded: no store or endpoint was given it; name the agent's trace "
            "store with --store, and set STARPO_DEBUG=1 to see what failed"
        )
    if not is_flushed or counts["acknowledged"] < counts["sent"]:
        raise StoreError("the reward was not acknowledged in time; send it again (same id: once)")
