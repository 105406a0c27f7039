"""Columns of numbers -> bins; hidden characters -> visible ones."""

import math

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from starpo_trace.look.numbers import choose_bins, describe, format_number
from starpo_trace.look.visible import make_visible


def test_few_values_have_a_bin_each():
    """Rewards of 0, 0.5 and 1; what is missing or no number is counted apart."""
    values = pl.Series([0.0, 1.0, 1.0, 0.5, None, math.nan, math.inf])
    found = describe(values)
    assert found.bins.labels == ("0", "0.5", "1")
    assert found.counts == (1, 1, 2)
    assert (found.num_missing, found.num_odd, found.num_rows) == (1, 2, 7)
    assert (found.mean, found.low, found.high) == (0.625, 0.0, 1.0)
    assert math.isclose(found.deviation or 0, math.sqrt(2.75 / 16))


def test_many_whole_numbers_are_put_into_ranges():
    """1 to 32: sixteen ranges of two."""
    found = describe(pl.Series(range(1, 33)))
    assert found.bins.labels[:2] == ("1 to 2", "3 to 4")
    assert found.counts == (2,) * 16


def test_an_outlier_does_not_hide_the_rest():
    """One run of a million turns among a thousand short ones: the last bin reaches out to it."""
    found = describe(pl.Series([*range(1000), 1_000_000]))
    assert found.counts[0] == 62
    assert found.bins.highs[-1] == 1_000_000
    assert sum(found.counts) == 1001


def test_rounding_noise_makes_no_bin():
    """0.1 + 0.2 and 0.3 are one value."""
    assert describe(pl.Series([0.1 + 0.2, 0.3])).counts == (2,)


@given(st.lists(st.none() | st.floats()))
def test_every_float_is_counted_once(values):
    """Bins, odd ones and missing ones add up, whatever the numbers are."""
    series = pl.Series(values, dtype=pl.Float64)
    found = describe(series)
    finite = [each for each in values if each is not None and math.isfinite(each)]
    assert found.num_counted == len(finite)
    assert found.num_rows == len(values)
    assert list(found.bins.lows) == sorted(found.bins.lows)


@given(st.lists(st.none() | st.integers(-(2**62), 2**62)), st.lists(st.integers(-9, 9)))
def test_shared_bins_count_every_whole_number(values, others):
    """A part of the numbers, over the bins of all of them."""
    whole = pl.Series([*values, *others], dtype=pl.Int64)
    bins = choose_bins(whole)
    part = describe(pl.Series(others, dtype=pl.Int64), bins)
    assert part.num_counted == len(others)
    assert describe(whole, bins).num_missing == values.count(None)


def test_numbers_are_short():
    """As short as they can be read."""
    numbers = (1234567, 0.000123, 3.0, 2.5, 12345.6, None, math.nan)
    shown = ["1,234,567", "0.000123", "3", "2.5", "12,346", "—", "nan"]
    assert [format_number(each) for each in numbers] == shown


def test_hidden_characters_are_written_out():
    """Controls, direction marks, blanks of no width and tags; ordinary text stays."""
    assert make_visible("a\x00\x1b[31mb") == "a␀␛[31mb"
    assert make_visible("x\u202ey\u2066z\u200b\ufeff") == "x⟨U+202E⟩y⟨U+2066⟩z⟨U+200B⟩⟨U+FEFF⟩"
    assert make_visible("\U000e0041\x85\u2028") == "⟨U+E0041⟩⟨U+0085⟩⟨U+2028⟩"
    assert make_visible("one\r\ntwo\rthree\tend\n") == "one\ntwo␍three\tend\n"
    plain = "日本語 👩\u200d🔬 naïve שלום"
    assert make_visible(plain) == plain
