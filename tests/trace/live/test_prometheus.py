"""Every query of the dashboard and the alerts, asked of a real Prometheus that scrapes an agent.

The names are those of OpenTelemetry's Prometheus exporter for Python, which follows the same rules
as the Collector's and as Prometheus' OTLP receiver (UnderscoreEscapingWithSuffixes).
"""

import time

import openai
import pytest
import yaml
from prometheus_server import find_binary, run_prometheus

import starpo_trace
from starpo_trace.grafana.build import ALERTS_FILE, build_dashboard
from starpo_trace.grafana.panels import ROWS, VARIABLES
from starpo_trace.testing import Reply, ScriptedServer

pytestmark = pytest.mark.slow

RUNS = (  # policy, cohort, reward, calls, end
    ("a@1", "refunds", 1.0, 1, "terminated"),
    ("a@1", "refunds", 0.0, 2, "truncated"),
    ("a@1", "orders", 1.0, 1, "terminated"),
    ("a@1", "orders", 0.9, 3, "terminated"),
    ("b@2", "refunds", 0.0, 4, "error"),
    ("b@2", "refunds", 0.2, 2, "terminated"),
    ("b@2", "orders", 1.0, 1, "terminated"),
    ("b@2", "orders", 0.4, 2, "terminated"),
)
USAGE = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
POLICY, COHORT, END = "starpo_policy_id", "starpo_cohort", "starpo_trajectory_end"
EVALUATOR, TOKENS = "gen_ai_evaluation_name", "gen_ai_token_type"


def run_agent(client):
    """The runs above, and a late reward of 0 for the first."""
    ids = []
    for policy, cohort, value, num_calls, end in RUNS:
        with starpo_trace.trajectory(
            "clerk", task_id="t", policy_id=policy, cohort=cohort, environment_name="shop"
        ) as run:
            ids.append(run.id)
            for _ in range(num_calls):
                message = {"role": "user", "content": "?"}
                client.chat.completions.create(model="m", messages=[message])
            starpo_trace.reward(value, name="solved")
            run.end(end)
    starpo_trace.reward(0.0, name="liked", source="user", trajectory_id=ids[0])
    assert starpo_trace.flush()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Query -> result, over exactly the second round of the runs."""
    find_binary("prometheus")
    exporter = pytest.importorskip(
        "opentelemetry.exporter.prometheus",
        reason="opentelemetry-exporter-prometheus is not installed",
    )
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import CollectorRegistry, start_http_server

    folder = tmp_path_factory.mktemp("live")
    registry = CollectorRegistry()
    reader = exporter.PrometheusMetricReader(registry=registry)
    web, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    rules = ALERTS_FILE.read_text().replace(">= 20", ">= 1").replace("interval: 1m", "interval: 1s")
    starpo_trace.instrument(store=folder / "traces", metrics=MeterProvider([reader]))
    try:
        with (
            ScriptedServer([Reply(content="x", usage=USAGE)]) as server,
            openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client,
        ):
            run_agent(client)  # so that every series is there from the first scrape on
            with run_prometheus(
                folder / "prometheus", target_port=web.server_port, rules=rules
            ) as prometheus:
                prometheus.wait_for("sum(starpo_trajectory_count_total)", len(RUNS))
                time.sleep(1)
                begin_s = time.time()
                time.sleep(1)
                run_agent(client)
                prometheus.wait_for("sum(starpo_trajectory_count_total)", 2 * len(RUNS))
                prometheus.wait_for("sum(gen_ai_client_token_usage_count)", 2 * 2 * 16)
                time.sleep(2.5)  # the rules are evaluated once a second
                end_s = time.time()

                def ask(expr, *labels, **variables):
                    filled = fill(expr, window_ms=int((end_s - begin_s) * 1000), **variables)
                    return prometheus.ask(filled, *labels, time_s=end_s)

                ask.prometheus = prometheus
                ask.rules = yaml.safe_load(rules)["groups"][0]["rules"]
                yield ask
    finally:
        starpo_trace.uninstrument()
        web.shutdown()
        web.server_close()
        thread.join()


def fill(expr, *, window_ms, policy=".*", environment=".*", cohort=".*"):
    """A query as Grafana sends it."""
    values = {"policy": policy, "environment": environment, "cohort": cohort}
    values |= {"__rate_interval": f"{window_ms}ms", "__range": f"{window_ms}ms"}
    for name, value in values.items():
        expr = expr.replace(f"${name}", value)
    return expr


def find_queries(title, row):
    (spec,) = [spec for spec in ROWS[row] if spec.title == title]
    return [query.expr for query in spec.queries]


def test_every_query_of_the_dashboard_finds_something(asked):
    """None is empty, and none is NaN where there were runs."""
    panels = [each for each in build_dashboard()["panels"] if each["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) == 20
    labels = (POLICY, COHORT, END, EVALUATOR, TOKENS, "gen_ai_request_model", "le")
    for expr in queries:
        found = asked(expr, *labels)
        assert found, expr
        assert all(value == value for value in found.values()), expr  # noqa: PLR0124


def test_rewards_and_success(asked):
    """(1 + 0 + 1 + 0.9) / 4 and (0 + 0.2 + 1 + 0.4) / 4; 4 of 8 rewards and the late one fail."""
    expected = {
        ("a@1", "solved"): pytest.approx(0.725),
        ("a@1", "liked"): pytest.approx(0.0),
        ("b@2", "solved"): pytest.approx(0.4),
    }
    for row in ("Outcome", "Policies compared"):
        (mean,) = find_queries("Mean reward", row)
        assert asked(mean, POLICY, EVALUATOR) == expected
    (success,) = find_queries("Success", "Outcome")
    assert asked(success) == pytest.approx(4 / 9)
    assert asked(success, policy="b@2") == pytest.approx(1 / 4)
    assert asked(success, policy="a@1", cohort="orders") == pytest.approx(1.0)


def test_the_distribution_of_rewards(asked):
    """Shares of the 9 rewards that are at most 0, 0.2, 0.4, 0.9 and 1."""
    (heatmap,) = find_queries("Distribution of rewards", "Outcome")
    found = asked(heatmap, "le")
    whole = found["+Inf"]
    shares = {le: found[le] / whole for le in ("0.0", "0.2", "0.4", "0.9", "1.0")}
    assert shares == pytest.approx(
        {"0.0": 3 / 9, "0.2": 4 / 9, "0.4": 5 / 9, "0.9": 6 / 9, "1.0": 1}
    )


def test_fails_by_cohort_and_evaluator(asked):
    """Of refunds 0, 0, 0.2 and the late 0 of 5; of orders 0.4 of 4."""
    (cohorts,) = find_queries("Share failed, by cohort", "Failed evaluations")
    (evaluators,) = find_queries("Share failed, by evaluator", "Failed evaluations")
    (policies,) = find_queries("Share failed", "Policies compared")
    assert asked(cohorts, COHORT) == pytest.approx({"refunds": 4 / 5, "orders": 1 / 4})
    assert asked(evaluators, EVALUATOR) == pytest.approx({"solved": 4 / 8, "liked": 1.0})
    assert asked(policies, POLICY) == pytest.approx({"a@1": 2 / 5, "b@2": 3 / 4})


def test_steps_and_tokens(asked):
    """Steps 1 1 1 2 2 2 3 4: rank 4 of 8 is a third into (1, 2], 7.6 is 0.6 into (3, 4]."""
    p50, p95, p99 = find_queries("Steps of a run", "Steps and tokens")
    assert asked(p50) == pytest.approx(1 + 1 / 3)
    assert asked(p95) == pytest.approx(3.6)
    assert asked(p99) == pytest.approx(3.92)
    (by_policy,) = find_queries("Steps, p95", "Policies compared")
    assert asked(by_policy, POLICY) == pytest.approx({"a@1": 2.8, "b@2": 3.8})
    (tokens,) = find_queries("Tokens of a run", "Steps and tokens")
    assert asked(tokens, TOKENS) == pytest.approx({"input": 20.0, "output": 8.0})
    (output,) = find_queries("Output tokens of a run", "Policies compared")
    assert asked(output, POLICY) == pytest.approx({"a@1": 7.0, "b@2": 9.0})


def test_ends(asked):
    """Six came to their own end, one of eight was stopped and one failed."""
    (ends,) = find_queries("How runs end", "Ends")
    found = asked(ends, END)
    shares = {end: number / sum(found.values()) for end, number in found.items()}
    assert shares == pytest.approx({"terminated": 6 / 8, "truncated": 1 / 8, "error": 1 / 8})


def test_model_calls(asked):
    """Of the tokens per second, input to output is 10 to 4."""
    (rate,) = find_queries("Tokens per second", "Model calls (all, whatever is chosen above)")
    found = asked(rate, "gen_ai_request_model", TOKENS)
    assert found[("m", "input")] / found[("m", "output")] == pytest.approx(2.5)


def test_the_choices_of_the_variables(asked):
    """`label_values(metric, label)` is this request of Grafana's."""
    chosen = {}
    for name, query in VARIABLES.items():
        metric, label = query.removeprefix("label_values(").removesuffix(")").split(", ")
        chosen[name] = asked.prometheus.get(f"label/{label}/values", **{"match[]": metric})
    assert chosen == {
        "policy": ["a@1", "b@2"],
        "environment": ["shop"],
        "cohort": ["orders", "refunds"],
    }


def test_every_rule_is_evaluated(asked):
    """Prometheus loaded and ran them; each finds what it is about, its thresholds lowered."""
    (group,) = asked.prometheus.get("rules")["groups"]
    assert {rule["name"]: rule["health"] for rule in group["rules"]} == {
        rule.get("alert") or rule["record"]: "ok" for rule in asked.rules
    }
    exprs = {rule.get("alert") or rule["record"]: rule["expr"] for rule in asked.rules}
    assert asked(exprs["StarpoFailRate"], COHORT, EVALUATOR) == pytest.approx(
        {("refunds", "solved"): 3 / 4, ("refunds", "liked"): 1.0, ("orders", "solved"): 1 / 4}
    )
    assert asked(exprs["StarpoRewardDrop"], POLICY, EVALUATOR) == pytest.approx(
        {("b@2", "solved"): 0.325}
    )
    assert asked(exprs["StarpoBadEnds"], POLICY) == pytest.approx({"b@2": 1 / 4})
    assert asked(exprs["StarpoLongRuns"], POLICY) == {}  # none has 50 steps
    assert asked(exprs["StarpoLongRuns"].replace("> 50", "> 3"), POLICY) == pytest.approx(
        {"b@2": 3.8}
    )
