"""Runs in `.venvs/mlflow`: an agent under MLflow's SDK, feedback on it, then exports as users do.

Arguments: address of the tracking server, and `run MODEL_URL` or `export EXPERIMENT NUM_TRACES`.
"""

import json
import sys
import time
from pathlib import Path

import mlflow
import openai
from mlflow.entities import AssessmentSource, SpanType

TOOLS = [
    {
        "type": "function",
        "function": {"name": "stock", "parameters": {"type": "object", "properties": {}}},
    }
]


@mlflow.trace(span_type=SpanType.TOOL)
def stock(sku: str) -> int:
    return 3 if sku == "A7" else 0


@mlflow.trace(name="shop", span_type=SpanType.AGENT)
def answer(client: openai.OpenAI, question: str) -> str:
    messages = [{"role": "system", "content": "You count."}, {"role": "user", "content": question}]
    said = client.chat.completions.create(
        model="tiny", messages=messages, tools=TOOLS, temperature=0.5
    )
    messages.append(said.choices[0].message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": "c1", "content": str(stock(sku="A7"))})
    said = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    mlflow.update_current_trace(metadata={"mlflow.trace.session": "s-9"})
    return said.choices[0].message.content


@mlflow.trace(name="by hand", span_type=SpanType.CHAIN)
def answer_by_hand() -> str:
    with mlflow.start_span("model", span_type=SpanType.LLM) as span:
        span.set_inputs({"messages": [{"role": "user", "content": "2 + 2?"}]})
        span.set_outputs({"role": "assistant", "content": "4"})
    with mlflow.start_span("verifier", span_type="EVALUATOR") as span:
        span.set_outputs(1.0)
    return "4"


def run_agents(base_url: str) -> None:
    mlflow.set_experiment("shop")
    mlflow.openai.autolog()
    with openai.OpenAI(base_url=base_url, api_key="none") as client:
        answer(client, "how many A7?")
    trace_id = mlflow.get_last_active_trace_id()
    answer_by_hand()
    mlflow.flush_trace_async_logging()
    human = AssessmentSource(source_type="HUMAN", source_id="me")
    mlflow.log_feedback(
        trace_id=trace_id, name="helpful", value=True, source=human, rationale="it counted"
    )
    judge = AssessmentSource(source_type="LLM_JUDGE", source_id="a-model")
    mlflow.log_feedback(trace_id=trace_id, name="tone", value="polite", source=judge)
    mlflow.log_expectation(trace_id=trace_id, name="expected", value="3", source=human)
    trace = mlflow.get_trace(trace_id)
    call = next(span for span in trace.data.spans if span.span_type == "CHAT_MODEL")
    code = AssessmentSource(source_type="CODE", source_id="check")
    mlflow.log_feedback(
        trace_id=trace_id, span_id=call.span_id, name="format", value=0.5, source=code
    )
    artifact = Path("server/artifacts")
    for path in artifact.rglob("traces.json"):
        spans = json.loads(path.read_text())["spans"]
        if spans[0]["name"] == "shop":
            Path("artifact.json").write_text(path.read_text())


def export(name: str, num_traces: int) -> None:
    experiment = mlflow.get_experiment_by_name(name).experiment_id
    deadline = time.monotonic() + 60
    while True:
        traces = mlflow.search_traces(locations=[experiment], return_type="list")
        if len(traces) >= num_traces:
            break
        assert time.monotonic() < deadline, "the traces did not arrive"
        time.sleep(0.2)
    with open(f"{name}.jsonl", "w") as file:  # noqa: PTH123
        for trace in traces:
            file.write(trace.to_json() + "\n")
    frame = mlflow.search_traces(locations=[experiment])
    frame.to_json(f"{name}_frame.jsonl", orient="records", lines=True)
    frame[["trace_id", "trace"]].to_parquet(f"{name}_frame.parquet")
    frame.to_csv(f"{name}_frame.csv", index=False)


if __name__ == "__main__":
    mlflow.set_tracking_uri(sys.argv[1])
    match sys.argv[2:]:
        case ["run", url]:
            run_agents(url)
            export("shop", 2)
            Path("experiment.txt").write_text(mlflow.create_experiment("otlp"))
        case ["export", name, num_traces]:
            export(name, int(num_traces))
