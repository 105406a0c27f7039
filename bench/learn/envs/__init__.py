"""Five small games, each with tasks in splits, an oracle and a careless player."""

from learn.envs.bandit import Bandit
from learn.envs.base import Game
from learn.envs.frozen_lake import FrozenLake
from learn.envs.shop import Shop
from learn.envs.sokoban import Sokoban
from learn.envs.textcraft import TextCraft

GAMES: dict[str, type[Game]] = {
    game.name: game for game in (Bandit, FrozenLake, Sokoban, TextCraft, Shop)
}
