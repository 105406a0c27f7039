"""Prompts that begin with earlier turns' tokens -> whole prompts."""

from collections.abc import Sequence

from starpo_trace.convert.writers.stream import Row


def restore_prompts(turns: Sequence[Row]) -> list[list[int] | None]:
    """Turns of one trajectory, in order -> token ids of each whole prompt; None where unknown."""
    prompts: list[list[int] | None] = []
    for place, turn in enumerate(turns):
        rest, base = turn["prompt_token_ids"], turn["prompt_base_turn"]
        if rest is None or base is None:
            prompts.append(rest)
            continue
        begin = prompts[base] if 0 <= base < place else None
        if begin is None:
            prompts.append(None)
            continue
        sequence = begin + (turns[base]["response_token_ids"] or [])
        prompts.append(sequence[: turn["prompt_base_length"]] + rest)
    return prompts
