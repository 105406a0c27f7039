"""Imports its framework when it is asked: python lazily.py MODULE QUESTION; exit code 7"""

import sys


class Desk:
    @staticmethod
    def answer(name: str, question: str) -> str:
        shop = __import__(name)
        return shop.ask(question)


if __name__ == "__main__":
    print(Desk().answer(*sys.argv[1:]))
    sys.exit(7)
