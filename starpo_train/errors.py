"""Errors that `starpo_train` raises: the bad value, where it was, what to do."""


class StarpoTrainError(Exception):
    """Root of every error that `starpo_train` raises on purpose."""


class ConfigError(StarpoTrainError, ValueError):
    """A run file holds an unknown key or a value that cannot be used."""


class DataError(StarpoTrainError, ValueError):
    """A dataset lacks what the requested training or gate needs."""


class ProvenanceError(StarpoTrainError, ValueError):
    """The requested algorithm is not legal for this data."""


class ModelError(StarpoTrainError, ValueError):
    """A model folder cannot be loaded or lacks what is needed, such as a chat template."""


class TrainingError(StarpoTrainError, ArithmeticError):
    """A training step gave numbers that cannot be trained on."""


class OutOfMemoryError(StarpoTrainError, MemoryError):
    """A pack does not fit into memory."""

    def __init__(self, message: str, *, num_tokens: int, num_rows: int) -> None:
        super().__init__(message)
        self.num_tokens = num_tokens
        self.num_rows = num_rows


class CheckpointError(StarpoTrainError, OSError):
    """A checkpoint is missing, uncommitted, torn or tampered with."""


class ServerError(StarpoTrainError, RuntimeError):
    """The model server did not start or stopped answering."""


class RolloutError(StarpoTrainError, RuntimeError):
    """An agent file or environment cannot be used, or its runs keep failing."""


class EnvironmentFailedError(RolloutError):
    """An environment raised, or broke its protocol: its failure, not that of the model."""


class JudgeError(StarpoTrainError, RuntimeError):
    """The judge's endpoint, its rubric or its anchors cannot be used."""


class RankError(StarpoTrainError, RuntimeError):
    """A run on several devices cannot go on because of another of its processes.

    Whoever found it has told it already: the other process, or `ranks.watch_ranks`.
    """
