"""Text -> numbers that stay the same on every machine and with every version of Polars."""

from hashlib import blake2b

import polars as pl


def hash_texts(texts: pl.Series, *, prefix: str = "") -> pl.Series:
    """Texts -> unsigned 64-bit hashes; null stays null."""
    return pl.Series(
        texts.name,
        [None if text is None else _hash(prefix + text) for text in texts.to_list()],
        dtype=pl.UInt64,
    )


def digest_texts(texts: pl.Series) -> pl.Series:
    """Texts -> 128-bit hashes as hex; null stays null."""
    return pl.Series(
        texts.name,
        [
            None if text is None else blake2b(text.encode(), digest_size=16).hexdigest()
            for text in texts.to_list()
        ],
        dtype=pl.String,
    )


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
