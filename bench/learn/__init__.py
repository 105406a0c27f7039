"""Environments -> logged traffic -> trained methods -> unseen tasks -> gate: does it learn?"""

UNSEEN = ("sokoban", "shop")
"""Environments that no method's setting is chosen on; only how good their traffic is was."""
TUNED_ON = ("bandit", "frozen_lake", "textcraft")
"""Environments that settings may be chosen on, with their `tuning` tasks."""
