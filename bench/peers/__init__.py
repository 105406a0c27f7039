"""Parts of the benchmarks that run in an environment of each compared instrumentation."""

import os

PADDING = [f"padding {number}" for number in range(1_234 * int(os.environ.get("LAYOUT", "0")))]
"""Moves in memory whatever is imported after this package."""
