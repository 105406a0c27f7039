"""OpenAI SDK -> recorded chat completions, responses and embeddings."""

from types import ModuleType
from typing import Final

from starpo_trace.capture.patches.base import PatchSet
from starpo_trace.capture.patches.openai_chat import (
    ChatChunks,
    read_chat_request,
    read_chat_response,
)
from starpo_trace.capture.patches.stainless import Endpoint, patch_base_client

TESTED: Final = {"openai": ">=1.66,<4"}

_CHAT: Final = Endpoint(
    read_request=read_chat_request,
    read_response=read_chat_response,
    make_accumulator=ChatChunks,
    answer_field="choices",
)


def apply(patches: PatchSet, base_client: ModuleType) -> None:
    """Patch the module `openai._base_client`."""
    patch_base_client(patches, base_client, _find_endpoint, "openai")


def _find_endpoint(method: str, path: str) -> Endpoint | None:
    if method != "post":
        return None
    if path.endswith("/chat/completions"):
        return _CHAT
    return None
