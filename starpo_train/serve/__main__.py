"""`python -m starpo_train.serve MODEL`: the server that `ServerProcess` starts."""

import argparse
import logging
import sys
from pathlib import Path

from starpo_train.errors import StarpoTrainError
from starpo_train.serve.server import DEFAULT_HOST, serve


def main() -> int:
    """Parse arguments and serve; 2 when the model cannot be served."""
    parser = argparse.ArgumentParser(prog="python -m starpo_train.serve", description=__doc__)
    parser.add_argument("model", help="folder of a transformers causal language model")
    parser.add_argument("--host", default=DEFAULT_HOST)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--ready-file", type=Path)
    parser.add_argument("--exit-with-parent", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        serve(
            arguments.model,
            host=arguments.host,
            port=arguments.port,
            threads=arguments.threads,
            max_batch=arguments.max_batch,
            ready_file=arguments.ready_file,
            exit_with_parent=arguments.exit_with_parent,
        )
    except StarpoTrainError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
