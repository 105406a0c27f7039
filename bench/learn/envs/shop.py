"""A request -> product page, question, inventory -> was the right thing ordered, the safe way?

After the seed document's example. Whatever is checked out ends the run; it is a success only if
the final state says so: the offer has the wanted colour, within the budget, was in stock when
asked for, and the colour was known and not guessed. The agent reads "order placed" either way.
"""

import random
from typing import Any

from learn.envs.base import SHIFTED, Action, Game, Outcome, Spec, make_tool, read_argument

PRODUCTS = ("lamp", "chair", "radio", "tent")
COLOURS = ("red", "blue", "green")
OFFERS = ("a", "b", "c", "d")
PRICES = (10, 20, 30, 40)
SHIFTED_PRICES = (20, 30, 40, 50)


class Shop(Game):
    """One customer's request."""

    name = "shop"
    system = "Buy what the customer wants. Ask if the color is not said. Check inventory first."
    tools = (
        make_tool("visit", "product"),
        make_tool("ask", "about"),
        make_tool("inventory", "offer"),
        make_tool("checkout", "offer"),
    )
    max_turns = 7

    @classmethod
    def draw(cls, rng: random.Random, split: str) -> Spec | None:
        shifted = split == SHIFTED
        prices = SHIFTED_PRICES if shifted else PRICES
        colours = rng.sample(COLOURS, 2)
        offers = [
            [rng.choice(colours), rng.choice(prices), rng.random() < 0.7]
            for _ in range(4 if shifted else 3)
        ]
        spec = {
            "product": rng.choice(PRODUCTS),
            "color": colours[0],
            "said": rng.random() < (0.3 if shifted else 0.6),
            "budget": rng.choice(prices[1:-1]),
            "offers": offers,
        }
        usable = any(_fits(spec, offer) and offer[2] for offer in offers)
        misleading = sum(not _fits(spec, offer) for offer in offers)
        two_colours = len({colour for colour, _, _ in offers}) == 2
        return spec if usable and misleading and two_colours else None

    @classmethod
    def cohort(cls, spec: Spec) -> str:
        return "clear" if spec["said"] else "ambiguous"

    def __init__(self, spec: Spec, seed: int) -> None:
        del seed  # nothing here is left to chance
        self._spec = spec
        self.offers: dict[str, list[Any]] = dict(zip(OFFERS, spec["offers"], strict=False))
        self.known = bool(spec["said"])
        """The customer has said which colour."""
        self.visited = False
        self.stock: dict[str, bool] = {}
        """What inventory said."""
        self.ordered: str | None = None
        self._turns = 0

    def begin(self) -> str:
        colour = f" {self._spec['color']}" if self.known else ""
        return f"buy a{colour} {self._spec['product']}, budget {self._spec['budget']}."

    def act(self, action: Action) -> Outcome:
        play = {
            "visit": self._visit,
            "ask": self._ask,
            "inventory": self._inventory,
            "checkout": self._checkout,
        }[action.tool]
        said = play(action)
        self._turns += 1
        if self.ordered is not None:
            return Outcome(observation=said, reward=float(self.succeeded()), end="terminated")
        if self._turns >= self.max_turns:
            return Outcome(observation="The customer left.", end="truncated")
        return Outcome(observation=said)

    def succeeded(self) -> bool:
        """Whether the order is right and was made the safe way."""
        if self.ordered is None:
            return False
        offer = self.offers[self.ordered]
        return self.known and self.stock.get(self.ordered, False) and _fits(self._spec, offer)

    def best(self) -> Action:
        if not self.visited:
            return Action("visit", {"product": self._spec["product"]})
        if not self.known:
            return Action("ask", {"about": "color"})
        fitting = [name for name, offer in self.offers.items() if _fits(self._spec, offer)]
        left = [name for name in fitting if self.stock.get(name, True)]
        return Action("checkout" if left[0] in self.stock else "inventory", {"offer": left[0]})

    def careless(self, rng: random.Random) -> Action:
        """Straight to checkout, often; else any other step."""
        offer = rng.choice(list(self.offers))
        return rng.choice(
            [
                Action("checkout", {"offer": offer}),
                Action("checkout", {"offer": offer}),
                Action("inventory", {"offer": offer}),
                Action("visit", {"product": self._spec["product"]}),
                Action("ask", {"about": "color"}),
            ]
        )

    def think(self, action: Action) -> str:
        """What is known of the offers, and the next step."""
        step = f"{action.tool} {next(iter(action.arguments.values()))}."
        if not self.visited:
            return step
        if not self.known:
            return f"color unknown. {step}"
        fitting = [name for name, offer in self.offers.items() if _fits(self._spec, offer)]
        return f"fit {' '.join(fitting)}. {step}"

    def state(self) -> dict[str, Any]:
        return {
            "visited": self.visited,
            "color_known": self.known,
            "stock": dict(self.stock),
            "ordered": self.ordered,
            "succeeded": self.succeeded(),
        }

    def _visit(self, action: Action) -> str:
        product = read_argument(action, "product", PRODUCTS)
        if product != self._spec["product"]:
            return "no offers."
        self.visited = True
        return " ".join(
            f"{name} {colour} {price}." for name, (colour, price, _) in self.offers.items()
        )

    def _ask(self, action: Action) -> str:
        read_argument(action, "about", ("color",))
        self.known = True
        return f"customer: {self._spec['color']}, please."

    def _inventory(self, action: Action) -> str:
        name = read_argument(action, "offer", list(self.offers))
        self.stock[name] = bool(self.offers[name][2])
        return f"{name} in stock." if self.stock[name] else f"{name} sold out."

    def _checkout(self, action: Action) -> str:
        self.ordered = read_argument(action, "offer", list(self.offers))
        return f"order placed: {self.ordered}."


def _fits(spec: Spec, offer: list[Any]) -> bool:
    """Wanted colour, within the budget."""
    return offer[0] == spec["color"] and offer[1] <= spec["budget"]
