"""Several runs at once: python in_threads.py MODULE QUESTION...; the module is imported late."""

import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor


def main(name: str, *questions: str) -> None:
    shop = importlib.import_module(name)
    with ThreadPoolExecutor(2) as pool:
        for answer in pool.map(shop.ask, questions[1:]):
            print(answer)
    thread = threading.Thread(target=shop.ask, args=questions[:1])
    thread.start()
    thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
