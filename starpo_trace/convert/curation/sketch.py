"""Texts -> MinHash sketches: two are equal in as large a share as the texts' word runs overlap.

One permutation hashing (Li, Owen and Zhang, "One permutation hashing", NIPS 2012): each run of three
words is hashed once, the hash chooses one of 64 bins, and a bin keeps its least value. Empty bins
take the value of the next filled one, changed by the distance (Shrivastava and Li, "Densifying one
permutation hashing via rotation for fast near neighbor search", ICML 2014).
"""

from typing import Final

import polars as pl

from starpo_trace.convert.curation.stable import hash_texts

SKETCH_LENGTH: Final = 64
MAX_WORDS: Final = 20_000
"""Words of one text that are looked at."""

_RUN: Final = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
"""Odd factors of the words of a run."""
_MIX: Final = 0xFF51AFD7ED558CCD
_OFFSET: Final = 0x2545F491
_NUM_VALUES: Final = 2**31
_CJK: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}"
_WORD: Final = rf"[{_CJK}]|[\w--[{_CJK}]]+"
"""Scripts without spaces count by the character."""


def sketch_texts(texts: pl.DataFrame) -> pl.DataFrame:
    """`trajectory_id`, `text` (one row each) -> `trajectory_id`, `sketch`; none without a word."""
    words = (
        texts.select(
            "trajectory_id",
            word=pl.col("text").str.to_lowercase().str.extract_all(_WORD).list.head(MAX_WORDS),
        )
        .filter(pl.col("word").list.len() > 0)
        .explode("word")
    )
    vocabulary = words["word"].unique()
    hashes = pl.DataFrame({"word": vocabulary, "hash": hash_texts(vocabulary)})
    runs = words.join(hashes, on="word", how="left", maintain_order="left").select(
        "trajectory_id", hash=_hash_runs(pl.col("hash"))
    )
    filled = (
        runs.select(
            "trajectory_id",
            bin=(pl.col("hash") % SKETCH_LENGTH).cast(pl.Int64),
            value=(pl.col("hash") // SKETCH_LENGTH % _NUM_VALUES).cast(pl.Int64),
        )
        .group_by("trajectory_id", "bin")
        .agg(pl.col("value").min())
    )
    return _fill_bins(filled)


def _hash_runs(word: pl.Expr) -> pl.Expr:
    mixed = pl.lit(0, dtype=pl.UInt64)
    for i, factor in enumerate(_RUN):
        following = word.shift(-i).over("trajectory_id").fill_null(0)
        mixed = mixed + following * pl.lit(factor, dtype=pl.UInt64)
    mixed = mixed ^ (mixed // 2**33)
    mixed = mixed * pl.lit(_MIX, dtype=pl.UInt64)
    return mixed ^ (mixed // 2**32)


def _fill_bins(filled: pl.DataFrame) -> pl.DataFrame:
    first = filled.sort("trajectory_id", "bin").group_by("trajectory_id", maintain_order=True)
    around = first.first().with_columns(pl.col("bin") + SKETCH_LENGTH)  # the ring's next round
    donors = pl.concat([filled, around.select(filled.columns)]).sort("trajectory_id", "bin")
    bins = pl.DataFrame({"bin": pl.int_range(SKETCH_LENGTH, eager=True)})
    ids = filled.select("trajectory_id").unique().sort("trajectory_id")
    return (
        ids.join(bins, how="cross")
        .join_asof(
            donors.with_columns(donor="bin"),
            on="bin",
            by="trajectory_id",
            strategy="forward",
            check_sortedness=False,
        )
        .with_columns(
            value=(pl.col("value") + (pl.col("donor") - pl.col("bin")) * _OFFSET) % _NUM_VALUES
        )
        .group_by("trajectory_id", maintain_order=True)
        .agg(sketch=pl.col("value").cast(pl.Int32))
    )
