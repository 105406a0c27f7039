"""Runs in `.venvs/phoenix`: annotate the spans of a project, then export all as users do."""

import json
import sys
import time
import urllib.request

from phoenix.client import Client


def main(url: str, num_spans: int) -> None:
    client = Client(base_url=url)
    deadline = time.monotonic() + 60
    while True:
        spans = client.spans.get_spans_dataframe(project_identifier="shop", limit=10_000)
        if spans is not None and len(spans) >= num_spans:
            break
        assert time.monotonic() < deadline, "the spans did not arrive"
        time.sleep(0.2)
    annotate(client, spans)
    ids = list(spans.index)
    annotations = client.spans.get_span_annotations_dataframe(
        span_ids=ids, project_identifier="shop"
    )
    spans.to_parquet("spans.parquet")
    spans.to_json("spans.jsonl", orient="records", lines=True, date_format="iso", date_unit="ns")
    spans.to_csv("spans.csv")
    annotations = annotations.reset_index()
    annotations.to_json("annotations.jsonl", orient="records", lines=True, date_format="iso")
    annotations.drop(columns="metadata").to_parquet("annotations.parquet")
    with open("annotations_without_index.jsonl", "w") as file:  # noqa: PTH123
        annotations.drop(columns="span_id").to_json(file, orient="records", lines=True)
    project = f"{url}/v1/projects/shop"
    query = "&".join(f"span_ids={each}" for each in ids)
    for path, name in (
        ("spans?limit=1000", "rest_spans.json"),
        ("spans/otlpv1?limit=1000", "rest_otlp.json"),
        (f"span_annotations?limit=1000&{query}", "rest_annotations.json"),
    ):
        with urllib.request.urlopen(f"{project}/{path}") as answer, open(name, "wb") as file:  # noqa: PTH123
            file.write(answer.read())
    with open("client_spans.json", "w") as file:  # noqa: PTH123
        json.dump(client.spans.get_spans(project_identifier="shop", limit=1000), file, default=str)


def annotate(client: Client, spans) -> None:
    for span_id, kind, name in zip(spans.index, spans["span_kind"], spans["name"], strict=True):
        if kind == "AGENT" and name == "agent":
            client.spans.add_span_annotation(
                span_id=span_id,
                annotation_name="quality",
                annotator_kind="HUMAN",
                score=0.75,
                label="good",
                explanation="it counted",
                identifier="me",
                sync=True,
            )
        elif kind == "LLM" and name == "call":
            client.spans.add_span_annotation(
                span_id=span_id,
                annotation_name="tone",
                annotator_kind="LLM",
                label="polite",
                sync=True,
            )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
