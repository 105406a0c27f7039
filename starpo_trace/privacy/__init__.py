"""Texts, JSON and messages -> the same without secrets, before anything leaves the process."""

from typing import Final

REDACTION_VARIABLE: Final = "STARPO_REDACTION"
KEY_VARIABLE: Final = "STARPO_PSEUDONYM_KEY"
KEY_FILE_VARIABLE: Final = "STARPO_PSEUDONYM_KEY_FILE"
