"""Reasons of the converter, in words."""

from typing import Final

MEANINGS: Final = {
    # of trajectories
    "no_llm_call": "no call of a model was recorded",
    "no_content": "a prompt or an answer has no content",
    "missing_history": "a message that a prompt goes on from is missing",
    "content_truncated": "content was cut when it was recorded",
    "conflicting_copies": "two copies of a span differ",
    "call_error": "a call of the model failed",
    "skewed_clock": "clocks of the processes disagree",
    "open_part": "a process of the run never said how many steps it took",
    "reward_signature_invalid": "a reward has a forged or misplaced signature",
    "conflicting_root": "a further root span was rejected",
    "unended": "the run never said how it ended",
    "missing_turn": "a step number is missing, so a step was lost",
    "duplicate_step": "two steps have the same number",
    "token_ids_missing": "a turn has no recorded token ids",
    "logprob_missing": "a turn has no recorded log-probabilities",
    "logprob_estimated": "sampling settings changed the recorded log-probabilities",
    "stream_incomplete": "an answer was cut off, closed or cancelled",
    "no_reward": "no trusted reward says what the run was worth",
    "dropped_attributes": "the recorder had to drop attributes",
    "orphan_span": "the parent of a span is missing",
    "reward_refused": "a reward was refused while recording",
    "redacted": "masked text, so tokens are not the policy's own",
    "conflicting_roots": "the run has several root spans",
    "malformed_attributes": "a span's attributes cannot be read",
    "history_mismatch": "a span's history does not hash to what it says",
    "cycle": "spans name each other as parents",
    # of spans
    "malformed_span": "the span itself cannot be read",
    "unknown_dialect": "written by a library that is not read yet",
    "unknown_operation": "an operation that has no meaning here",
    "unknown_record": "a record of a newer or unknown kind",
    "not_an_agent_span": "no step of an agent",
    "duplicate_llm_call": "the same call is in another span too",
    "reward_target_missing": "a reward for a run that is not in the sources",
    "reward_target_ambiguous": "a reward that could belong to several runs",
    "reward_target_conflict": "a reward whose link and id name different runs",
    "reward_value": "a reward without a number",
}
