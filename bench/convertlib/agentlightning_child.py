"""agent-lightning 0.3: its spans as JSON lines -> triplets; run in an environment of its own.

Its own way from what it exports: `Span.model_validate_json` on each line, then the adapter on the
spans of each rollout.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    from agentlightning.adapter import TracerTraceToTriplet
    from agentlightning.types import Span

    adapter = TracerTraceToTriplet()
    num_spans = num_triplets = 0
    started = time.process_time()
    for path in sorted(Path(sys.argv[1]).glob("*.jsonl")):
        with path.open() as stream:
            spans = []
            for line in stream:
                if line == "\n":  # ends a rollout
                    num_triplets += len(adapter.adapt(spans))
                    spans = []
                else:
                    spans.append(Span.model_validate_json(line))
                    num_spans += 1
    cpu_s = time.process_time() - started
    print(json.dumps({"cpu_s": cpu_s, "spans": num_spans, "rows": num_triplets}))


if __name__ == "__main__":
    main()
