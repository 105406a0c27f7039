"""Prompt ids -> base turn, base length and the rest."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from starpo_trace.convert.token_ids import share_prompts

IDS = st.lists(st.integers(0, 2), max_size=6)


def share(rows) -> list[tuple]:
    turns = pl.DataFrame(
        [
            {
                "trajectory_id": trajectory,
                "step": step,
                "prompt_ids": prompt,
                "prompt_base_step": base_step,
                "prompt_base_length": base_length,
                "response_ids": response,
            }
            for trajectory, step, prompt, base_step, base_length, response in rows
        ],
        schema={
            "trajectory_id": pl.String,
            "step": pl.Int64,
            "prompt_ids": pl.List(pl.Int32),
            "prompt_base_step": pl.Int64,
            "prompt_base_length": pl.Int64,
            "response_ids": pl.List(pl.Int32),
        },
    )
    shared = share_prompts(turns)
    return shared.select("prompt_base_turn", "prompt_base_length", "prompt_token_ids").rows()


def test_whole_prompts_share_the_longest_prefix():
    """Extension, rewritten history, and nothing shared with another trajectory."""
    assert share(
        [
            ("a", 0, [1, 2], None, 0, [3]),
            ("a", 1, [1, 2, 3, 4], None, 0, [5]),
            ("a", 2, [1, 2, 9], None, 0, [5]),
            ("b", 0, [1, 2], None, 0, [3]),
        ]
    ) == [
        (None, 0, [1, 2]),
        (0, 3, [4]),
        (1, 2, [9]),
        (None, 0, [1, 2]),
    ]


def test_unknown_or_short_base_means_unknown_ids():
    """A base that is not there, too short, circular or itself unknown."""
    assert (
        share(
            [
                ("a", 0, [1], None, 0, [2]),
                ("a", 1, [3], 7, 1, [2]),
                ("a", 2, [3], 0, 3, [2]),
                ("a", 3, [3], 3, 1, [2]),
                ("a", 4, [3], 1, 1, [2]),
                ("a", 5, None, None, 0, None),
            ]
        )
        == [(None, 0, [1])] + [(None, 0, None)] * 5
    )


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=6))
def test_shared_prompts_restore_the_whole_ones(turns):
    """Following the bases gives back every prompt."""
    shared = share([("a", i, p, None, 0, r) for i, (p, r) in enumerate(turns)])
    whole: list[list[int]] = []
    for (prompt, _), (base, length, rest) in zip(turns, shared, strict=True):
        begin = (whole[base] + turns[base][1])[:length] if base is not None else []
        whole.append(begin + rest)
        assert whole[-1] == prompt
