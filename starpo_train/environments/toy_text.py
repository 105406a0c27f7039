"""What gymnasium's toy-text games are about, in words: goals, actions, observations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_COMPASS: Final = ("up", "right", "down", "left")
_LAKE: Final = "Cross the frozen lake from S to G. F is ice, H is a hole; you are at [ ]."
_CLIFF: Final = "Walk from x to T without stepping on the cliff C; you are at x. Each step costs 1."

ACTIONS: Final[Mapping[str, Sequence[str]]] = {
    "FrozenLake": ("left", "down", "right", "up"),
    "FrozenLake8x8": ("left", "down", "right", "up"),
    "CliffWalking": _COMPASS,
    "CliffWalkingSlippery": _COMPASS,
    "Taxi": ("south", "north", "east", "west", "pickup", "dropoff"),
    "Blackjack": ("stick", "hit"),
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "nothing", "right"),
}
"""Id without version -> names of the actions, as gymnasium documents their order."""

GOALS: Final[Mapping[str, str]] = {
    "FrozenLake": _LAKE,
    "FrozenLake8x8": _LAKE,
    "CliffWalking": _CLIFF,
    "CliffWalkingSlippery": _CLIFF,
    "Taxi": "Fetch the passenger with your taxi and drop them off where they want to go. The grid "
    "has 5 rows and 5 columns from 0, in the north-west; walls may be between columns.",
    "Blackjack": "Get closer to 21 than the dealer without going above it.",
    "CartPole": "Keep the pole on the cart from falling over.",
    "MountainCar": "Drive the car up the hill on the right.",
}

_STANDS: Final = {"R": (0, 0), "G": (0, 4), "Y": (4, 0), "B": (4, 3)}


def describe_taxi(number: int) -> str:
    """Observation of Taxi: ((row * 5 + column) * 5 + passenger) * 4 + destination.

    >>> describe_taxi(((3 * 5 + 1) * 5 + 4) * 4 + 2)
    'taxi at row 3, column 1; passenger in the taxi; destination Y at row 4, column 0'
    """
    rest, destination = divmod(int(number), 4)
    rest, passenger = divmod(rest, 5)
    row, column = divmod(rest, 5)
    names = list(_STANDS)
    waits = "in the taxi" if passenger == len(names) else f"at {_name_stand(names[passenger])}"
    return (
        f"taxi at row {row}, column {column}; passenger {waits}; "
        f"destination {_name_stand(names[destination])}"
    )


def describe_blackjack(hand: Sequence[int]) -> str:
    """Observation of Blackjack: own sum, the dealer's card, whether an ace counts 11.

    >>> describe_blackjack((14, 10, 0))
    'you have 14, no usable ace; the dealer shows 10'
    """
    total, dealer, ace = (int(each) for each in hand)
    return f"you have {total}, {'a' if ace else 'no'} usable ace; the dealer shows {dealer}"


DESCRIPTIONS: Final[Mapping[str, Callable[[Any], str]]] = {
    "Taxi": describe_taxi,
    "Blackjack": describe_blackjack,
}


def _name_stand(name: str) -> str:
    row, column = _STANDS[name]
    return f"{name} at row {row}, column {column}"
