"""What rendering by a chat template can do to a trajectory, by name, and what follows from it.

docs/tokens.md says what each means and what to do.
"""

from typing import Final

FAULTS: Final = (
    "messages_missing",
    "unknown_role",
    "unwritable_part",
    "unwritable_tool",
    "unanswered_call",
    "unmatched_result",
    "no_answer",
    "content_not_text",
    "template_refuses",
    "template_rewrites_prompt",
    "template_opens_answer",
    "template_changes_answer",
    "template_drops_tool_calls",
)
"""An answer that was not given like this would be trained: always left out."""

LOSSES: Final = (
    "template_ignores_tools",
    "template_drops_messages",
    "template_drops_results",
    "template_drops_earlier_calls",
    "template_drops_reasoning",
    "template_writes_none",
    "template_leaves_answer_open",
)
"""The model would see or learn less than was there: left out unless `data.lossy_rendering` keeps."""

NOTES: Final = (
    "template_rewrites_history",
    "template_strips_reasoning",
    "template_rewrites_arguments",
    "template_adds_to_answer",
    "template_adds_system",
    "template_adds_date",
    "special_token_in_text",
    "boundary_drift",
)
"""Reported; the rows are those that the model would see when it is served with this template."""
