"""Tasks and the places they are played in, for `starpo-train evaluate`.

`protocol.py` is all that an environment has to know. `play.py` plays one with a model.
"""

from starpo_train.environments.calls import CallEpisode, ToolError
from starpo_train.environments.protocol import Environment, Episode, Feedback, Message, Task
from starpo_train.environments.tool_tasks import ToolEnvironment, ToolTask

__all__ = [
    "CallEpisode",
    "Environment",
    "Episode",
    "Feedback",
    "Message",
    "Task",
    "ToolEnvironment",
    "ToolError",
    "ToolTask",
]
