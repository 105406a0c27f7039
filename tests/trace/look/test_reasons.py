"""Every reason that the converter gives has words on the page."""

import re
from pathlib import Path

import starpo_trace.convert
from starpo_trace.convert.contentrefs import REASONS
from starpo_trace.convert.copies import CONFLICT
from starpo_trace.convert.dialects.adot import ORDER_LOST
from starpo_trace.convert.forgotten import FORGOTTEN
from starpo_trace.convert.verdict import INFORMATION, NOT_EVEN_SFT, NOT_RL
from starpo_trace.look.reasons import MEANINGS

SOURCE = Path(str(starpo_trace.convert.__file__)).parent
GIVEN = re.compile(r'(?:reason="|\.reject\(\s*i, "|return None, ")([a-z_]+)"')


def test_every_reason_has_words():
    """Those of the verdict, and those that stand in the code for single spans."""
    texts = [path.read_text() for path in SOURCE.rglob("*.py")]
    written = {reason for text in texts for reason in GIVEN.findall(text)}
    assert {"container", "duplicate_llm_call", "reward_value"} <= written
    named = {CONFLICT, ORDER_LOST, FORGOTTEN, *REASONS, *NOT_EVEN_SFT, *INFORMATION, *NOT_RL}
    assert sorted((written | named) - set(MEANINGS)) == []
