"""OpenAI SDK -> its requests recorded: chat completions, responses, embeddings and more.

The seam that every way in passes (`create`, `parse`, `stream`, raw and streaming responses,
`client.post`) is the client's `request` method.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Final

from starpo_trace.capture.patches.base import (
    PatchSet,
    load_at_first_call,
    make_async_recorder,
    make_recorder,
)

if TYPE_CHECKING:
    from starpo_trace.capture.patches.base import Begin, End
    from starpo_trace.capture.patches.stainless import Endpoint

TESTED: Final = {"openai": ">=1.66,<4"}


def apply(patches: PatchSet, base_client: ModuleType) -> None:
    """Patch the module `openai._base_client`."""
    begin, end = load_at_first_call(_load_steps)
    patches.wrap(base_client.SyncAPIClient, "request", make_recorder(begin, end))
    patches.wrap(base_client.AsyncAPIClient, "request", make_async_recorder(begin, end))


def _load_steps() -> "tuple[Begin[Endpoint], End[Endpoint]]":
    from starpo_trace.capture.patches.openai_endpoints import find_endpoint
    from starpo_trace.capture.patches.stainless import make_steps

    return make_steps(find_endpoint, "openai")
