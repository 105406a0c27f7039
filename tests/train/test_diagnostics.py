"""Mutual information by hand, rules on made-up series, and runs that are watched."""

import json
import math
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from starpo_train.config import ModelSection, read_run_config
from starpo_train.diagnostics.early_stop import (
    RULES,
    Window,
    extend_history,
    judge_history,
)
from starpo_train.diagnostics.mi_proxy import (
    compute_zscore,
    measure_information,
    measure_retrieval,
    update_ema,
)
from starpo_train.diagnostics.reasoning import (
    ReasoningTags,
    find_reasoning,
    find_reasoning_tags,
)
from starpo_train.diagnostics.sampling import SampledAnswer, sample_answers, sample_turns
from starpo_train.diagnostics.scoring import merge_prompts, score_crosswise
from starpo_train.diagnostics.variance import compute_deviations, measure_step_deviation
from starpo_train.errors import ConfigError
from starpo_train.metrics import read_metrics
from starpo_train.model import load_policy
from starpo_train.run import train
from starpo_train.run_folder import read_resumed_config
from starpo_train.tokens import TurnTokens, build_rows

# Mutual information

PROBABILITIES = torch.tensor(
    [[0.6, 0.2, 0.1], [0.1, 0.5, 0.3], [0.2, 0.4, 0.3]], dtype=torch.float64
)
OWN = torch.tensor([0, 1, 2])


def test_mutual_information_of_three_answers_by_hand():
    """Means of (.6 .2 .1), (.1 .5 .3), (.2 .4 .3) are .3 each: MI = mean log(.6, .5, .3 over .3)."""
    found = measure_information(PROBABILITIES.log(), OWN)
    assert found.matched == pytest.approx((math.log(0.6) + math.log(0.5) + math.log(0.3)) / 3)
    assert found.marginal == pytest.approx(math.log(0.3))
    assert found.mutual == pytest.approx((math.log(2) + math.log(5 / 3) + 0) / 3)
    assert found.marginal_std == pytest.approx(0.0, abs=1e-12)


def test_deviation_of_the_marginal_and_zscore_by_hand():
    """Marginals log .2 and log .8 deviate by log 2 (ddof 0); z = MI / (log 2 + .001)."""
    logprobs_NU = torch.tensor([[0.3, 0.1], [0.9, 0.7]], dtype=torch.float64).log()
    found = measure_information(logprobs_NU, torch.tensor([0, 0]))
    assert found.marginal_std == pytest.approx(math.log(2))
    mutual = (math.log(0.3 / 0.2) + math.log(0.9 / 0.8)) / 2
    assert compute_zscore(found.mutual, found.marginal_std) == pytest.approx(
        mutual / (math.log(2) + 1e-3)
    )


def test_mutual_information_is_at_most_the_log_of_prompts():
    """Answers that only their own prompt allows reach the limit, log 3."""
    logprobs_NU = torch.where(torch.eye(3) > 0, -1.0, -100.0).double()
    assert measure_information(logprobs_NU, OWN).mutual == pytest.approx(math.log(3))


def test_retrieval_by_hand():
    """Own prompts are first, first and second."""
    first, second, third = (measure_retrieval(PROBABILITIES, OWN, rank=rank) for rank in (1, 2, 4))
    assert (first.accuracy, first.chance) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert (second.accuracy, second.chance) == (1.0, pytest.approx(2 / 3))
    assert (third.accuracy, third.chance) == (1.0, 1.0)


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_a_policy_that_ignores_its_prompt_is_at_chance(rank):
    """Equal log-probabilities under 16 prompts: MI 0, and retrieval exactly rank / 16."""
    logprobs_NU = torch.linspace(-9, -1, 32).double()[:, None].expand(32, 16)
    prompt_of_N = torch.arange(32) % 16
    assert measure_information(logprobs_NU, prompt_of_N).mutual == pytest.approx(0, abs=1e-12)
    found = measure_retrieval(logprobs_NU, prompt_of_N, rank=rank)
    assert (found.accuracy, found.chance) == (rank / 16, rank / 16)


def test_ema_by_hand():
    """2, then .9 x 2 + .1 x 1, then .9 x 1.9 + .1 x 4."""
    smoothed = None
    found = [smoothed := update_ema(smoothed, value) for value in (2.0, 1.0, 4.0)]
    assert found == pytest.approx([2.0, 1.9, 2.11])


# Turns, their reasoning, and their scores


def test_identical_prompts_are_one():
    """Four answers under three prompts."""
    prompts = [np.array(ids) for ids in ([5, 6], [5], [5, 6], [4, 9, 1])]
    distinct, prompt_of_N = merge_prompts(prompts)
    assert [prompt.tolist() for prompt in distinct] == [[4, 9, 1], [5], [5, 6]]
    assert prompt_of_N.tolist() == [2, 1, 2, 0]


@pytest.mark.parametrize("attention", ["tree", "packed", "rows"])
def test_cross_scores_are_those_of_transformers(hand, model_folder, attention):
    """Every answer behind every distinct prompt, against one forward pass of each pair."""
    section = ModelSection(path=str(model_folder), device="cpu", attention=attention)
    policy = load_policy(section)
    pairs = [([0, 20, 21, 60], [40, 1]), ([0, 20, 22], [50, 7, 1]), ([0, 20, 21, 60], [41])]
    answers = [
        SampledAnswer(trajectory=0, prompt_ids_T=np.array(x), answer_ids_T=np.array(z))
        for x, z in pairs
    ]
    found = score_crosswise(policy, answers, tokens_per_pack=16, name_answer=str)
    reference = load_policy(ModelSection(path=str(model_folder), device="cpu"))
    assert found.prompt_of_N.tolist() == [0, 1, 0]
    for u, prompt in enumerate(([0, 20, 21, 60], [0, 20, 22])):
        for i, (_, answer) in enumerate(pairs):
            expected = float(hand.score(reference, prompt, answer).sum())
            assert float(found.logprobs_NU[i, u]) == pytest.approx(expected, abs=1e-4)
    assert found.lengths_N.tolist() == [2, 3, 1]
    assert found.num_row_tokens == 3 * (4 + 3) + 2 * (2 + 3 + 1)
    assert (found.num_computed < found.num_row_tokens) == (attention == "tree")


def build_trajectory(number, turns):
    """Rows of one trajectory: each turn's prompt goes on from the one before."""
    tokens, ids = [], [0]
    for turn, answer in enumerate(turns):
        ids = [*ids, 10 + number]
        tokens.append(
            TurnTokens(
                turn=turn,
                prompt_ids_T=np.array(ids),
                response_ids_T=np.array(answer),
                logprobs_T=None,
                recorded=True,
                trained=True,
            )
        )
        ids = [*ids, *answer]
    return build_rows(tokens, trajectory=number)


def gather_rows(trajectories):
    rows, rows_of_N = [], []
    for number, turns in enumerate(trajectories):
        built = build_trajectory(number, turns)
        rows_of_N.append(list(range(len(rows), len(rows) + len(built))))
        rows += built
    return rows, rows_of_N


def test_long_trajectories_are_sampled_no_more_than_short_ones():
    """One of eight turns and one of a single turn: each gives one of two, over many seeds evenly."""
    rows, rows_of_N = gather_rows([[[k, 1] for k in range(100, 108)], [[99, 1]]])
    seen = set()
    for seed in range(60):
        chosen = sample_turns(rows, rows_of_N, count=2, seed=seed)
        assert sorted(n for n, *_ in chosen) == [0, 1]
        seen |= {int(rows[row].input_ids_T[start]) for _, row, start, _ in chosen}
        assert chosen == sample_turns(rows, rows_of_N, count=2, seed=seed)
    assert seen == {99, *range(100, 108)}
    everything = sample_turns(rows, rows_of_N, count=64, seed=0)
    assert len(everything) == len(set(everything)) == 9


THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}OPEN\n{{ message.reasoning_content }}\nCLOSE\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nPROMPT{% endif %}"
)


@pytest.mark.parametrize(
    ("opening", "closing", "prompt"),
    [
        ("<think>", "</think>", ""),
        ("[THINK]", "[/THINK]", ""),
        ("<think>", "</think>", "<think>\n"),
    ],
    ids=["sampled", "brackets", "in the prompt"],
)
def test_tags_are_those_of_the_template(hand, opening, closing, prompt):
    """What the template writes around reasoning, and where that is without one."""
    text = THINKING_TEMPLATE.replace("OPEN", opening).replace("CLOSE", closing)
    tokenizer = hand.tokenizer(chat_template=text.replace("PROMPT", prompt))
    assert find_reasoning_tags(tokenizer) == ReasoningTags(opening=opening, closing=closing)
    plain = ReasoningTags(opening="<think>", closing="</think>")
    assert find_reasoning_tags(hand.tokenizer()) == plain
    assert find_reasoning_tags(hand.tokenizer(chat_template=None)) == plain


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ("user left", "<think>\nup or down\n</think>\n\nleft", "up or down"),
        ("user left<think>\n", "goal hole\n</think>right", "goal hole"),
        ("user left", "goal</think>right", "goal"),
        ("user left<think>", "goal hole", "goal hole"),
        ("user left", "<think>\n\n</think>\n\nleft", None),
        ("user <think>old</think> left", "right", None),
    ],
    ids=["sampled", "in the prompt", "not recorded", "cut short", "empty", "none"],
)
def test_reasoning_is_what_stands_between_the_tags(hand, prompt, response, expected):
    """Without tags and the white space beside them, as ids of the row."""
    tokenizer = hand.tokenizer()
    before, after = (tokenizer.encode(text) for text in (prompt, response))
    ids_T = np.array([*before, *after])
    found = find_reasoning(
        tokenizer, ids_T, start=len(before), end=len(ids_T), tags=ReasoningTags()
    )
    assert (found and tokenizer.decode(ids_T[slice(*found)])) == expected


@pytest.mark.parametrize(("thinking", "kind"), [(2, "reasoning"), (1, "turn")])
def test_whole_turns_stand_in_where_most_have_no_reasoning(hand, thinking, kind):
    """Of three turns two, or one, have reasoning."""
    tokenizer = hand.tokenizer()
    texts = ["<think>goal</think>left"] * thinking + ["right"] * (3 - thinking)
    rows, rows_of_N = gather_rows([[tokenizer.encode(text)] for text in texts])
    sample = sample_answers(rows, rows_of_N, tokenizer, count=64, seed=0, longest=512)
    found = sorted(tokenizer.decode(answer.answer_ids_T) for answer in sample.answers)
    assert sample.kind == kind
    assert found == (["goal", "goal"] if kind == "reasoning" else sorted(texts))


def test_answers_leave_room_for_the_longest_prompt(hand):
    """Prompts of 2 and 6 tokens in a model of 8: answers are cut to 2 tokens."""
    rows, rows_of_N = gather_rows([[[30, 31, 32, 33]], [[34, 35, 36], [37, 38]]])
    sample = sample_answers(rows, rows_of_N, hand.tokenizer(), count=3, seed=0, longest=8)
    assert sorted(a.answer_ids_T.tolist() for a in sample.answers) == [[30, 31], [34, 35], [37, 38]]


# Rules


def find_rules(series, metric, **fixed):
    """Steps at which each rule first holds, over a series of one metric."""
    history, found = {}, {}
    for step, value in enumerate(series, 1):
        record = {metric: value, **fixed}
        history = extend_history(history, record)
        for finding in judge_history(history, record):
            found.setdefault(finding.rule, step)
    return found


def make_noise(level, count, *, spread=0.1, seed=0):
    return level * np.exp(spread * np.random.default_rng(seed).standard_normal(count))


SERIES = {
    # ten of 1, then .09: the tenth below .1 x 1 is step 20
    "reward_deviation_gone": ("in_group_reward_std", [1.0] * 10 + [0.09] * 10, 20),
    "validation_failed": ("validation_success", [0.2] + [0.009] * 5, 6),
    "empty_steps": ("advantage_mean_abs", [0.5, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0], 11),
    "gradient_gone": ("grad_norm", [1.0, *[0.0] * 9, 1.0, *[0.0] * 10], 21),
    # below 5 % of 2 from step 15 on
    "entropy_collapse": ("entropy", [2.0] * 14 + [0.09] * 10, 24),
    # above 3 x .8 and 2 from step 13 on
    "entropy_explosion": ("entropy", [0.8] * 12 + [2.5] * 10, 22),
    # 1, 3, 1, 3: each is 2 from its neighbours, the 1 before them 1; half of 18 need 9 of them
    "entropy_erratic": ("entropy", [1.0] * 25 + [3.0, 1.0] * 5, 34),
    "gradient_spike": ("grad_norm", [1.0] * 12 + [11.0] * 3, 15),
    "left_the_data": ("approx_kl", [0.0, 0.2, 0.2, 0.1, 0.2, 0.16, 0.2], 7),
    "input_forgotten": ("retrieval_excess", [0.5, 0.4, -0.01, -0.02, 0.0], 5),
    "good_runs_lost": ("good_lost_excess", [-0.1, 0.0, 0.01], 3),
}


def test_every_rule_has_a_series():
    """So that none is left untested."""
    assert {rule.name for rule in RULES} == set(SERIES)


@pytest.mark.parametrize("rule", SERIES)
def test_rule_holds_at_its_step_and_no_other_rule_does(rule):
    """Series made to break one rule at a step counted by hand."""
    metric, series, step = SERIES[rule]
    assert find_rules(series, metric, algorithm="starpo") == {rule: step}


@pytest.mark.parametrize(
    ("metric", "series"),
    [
        ("entropy", make_noise(0.3, 400, spread=0.3)),
        ("entropy", make_noise(1.0, 60, spread=0.05) * np.linspace(1, 0.2, 60)),
        ("entropy", make_noise(0.2, 60, spread=0.2) * np.linspace(1, 5, 60)),
        ("grad_norm", make_noise(1.0, 400, spread=0.7)),
        ("grad_norm", [1.0] * 12 + [100.0, 100.0, 1.0] * 10),  # two bad steps are bad steps
        ("grad_norm", [1.0] * 10 + [1e-6] * 20 + [2.0] * 5),  # back from nothing
        ("grad_norm", [1.0] * 10 + [0.0] * 9 + [1.0]),
        ("in_group_reward_std", [0.0] * 30),
        ("in_group_reward_std", make_noise(0.4, 200, spread=0.5)),
        ("retrieval_excess", [-0.1] * 10),  # never told them apart: nothing was forgotten
    ],
)
def test_healthy_series_break_no_rule(metric, series):
    """Noise, trends, single outliers and metrics that were never there."""
    assert find_rules(series, metric, algorithm="starpo") == {}


def make_healthy_run(rng):
    """Records with trends, correlated noise of up to 25 % (entropy) and wild gradient norms."""
    count = int(rng.integers(30, 300))
    noise, kept = rng.standard_normal(count), rng.uniform(0, 0.9)
    for i in range(1, count):
        noise[i] = kept * noise[i - 1] + math.sqrt(1 - kept**2) * noise[i]
    level = 10 ** rng.uniform(-2, 0.3) * np.exp(np.linspace(0, rng.uniform(-2, 1), count))
    norms = np.exp(rng.uniform(0.1, 1) * rng.standard_normal(count))
    norms *= np.exp(np.linspace(0, rng.uniform(-2, 2), count))
    deviations = np.clip(0.4 + rng.uniform(0, 0.2) * rng.standard_normal(count), 0, None)
    entropies = level * np.exp(rng.uniform(0.02, 0.25) * noise)
    for entropy, norm, deviation in zip(entropies, norms, deviations, strict=True):
        yield {
            "entropy": entropy,
            "grad_norm": norm,
            "approx_kl": 0.05 * math.exp(0.5 * float(rng.standard_normal())),
            "in_group_reward_std": deviation,
            "algorithm": "starpo",
            "advantage_mean_abs": 0.5,
        }


def test_healthy_runs_are_left_alone():
    """A hundred made-up runs of 30 to 300 steps; no rule holds in any of them."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        history = {}
        for record in make_healthy_run(rng):
            history = extend_history(history, record)
            assert judge_history(history, record) == []


def test_a_policy_far_from_its_data_is_stopped():
    """Three steps running, not single ones; data of another policy is far from the start."""
    series = [0.0, 0.05, 0.9, 0.05, 0.12, 0.3, 0.25, 0.21, 0.4]
    assert find_rules(series, "approx_kl") == {"left_the_data": 8}
    assert find_rules([0.5, 0.6, 0.9, 1.0, 1.1, 1.0], "approx_kl") == {}
    assert find_rules([0.5, 0.6, 0.9, 1.3, 1.4, 1.16], "approx_kl") == {"left_the_data": 6}


def test_cloning_may_end_without_entropy():
    """What is copied may well have none; under StarPO's loss the same fall is a collapse."""
    series = [2.0] * 10 + [0.001] * 12
    assert find_rules(series, "entropy", algorithm="filtered_bc") == {}
    assert find_rules(series, "entropy", algorithm="starpo") == {"entropy_collapse": 20}


def test_history_goes_through_json():
    """What a checkpoint keeps of a metric is all that rules need."""
    window = Window()
    for value in range(40):
        window = window.add(value / 3)
    assert (window.first[-1], window.last[0], window.count) == (3.0, 16 / 3, 40)
    again = json.loads(json.dumps({"first": window.first, "last": window.last}))
    assert tuple(again["last"]) == window.last
    assert extend_history({}, {"entropy": None, "grad_norm": float("nan")}) == {}


def test_deviations_of_rewards_by_hand():
    """Tasks of (1, 0), (5) and (2, 2): .7071, none, 0; a step of the first and last has their mean."""
    task_of_N = np.array([7, 7, 3, 9, 9])
    deviations_N = compute_deviations(np.array([1.0, 0.0, 5.0, 2.0, 2.0]), task_of_N)
    root = math.sqrt(0.5)
    assert deviations_N == pytest.approx([root, root, np.nan, 0, 0], nan_ok=True)
    assert measure_step_deviation(deviations_N, task_of_N, [0, 1, 2, 4]) == pytest.approx(root / 2)
    assert measure_step_deviation(deviations_N, task_of_N, [2]) is None


# Runs


def of_event(result, event):
    return [r for r in read_metrics(result.metrics_path) if r.get("event") == event]


ABSURD = {"epochs": 20, "trajectories_per_step": 4, "learning_rate": 1.0}


def test_a_run_that_collapses_is_stopped_with_a_checkpoint(configure):
    """At a learning rate of 1 two steps throw the policy off its data."""
    result = train(configure(train=ABSURD, diagnostics={"early_stop": True}))
    (stop,) = of_event(result, "early_stop")
    assert result.stopped_by == stop["rule"] == "left_the_data"
    assert stop["step"] == result.num_steps < 10
    assert not result.interrupted
    final = json.loads((result.metrics_path.parent / "final.json").read_text())
    assert (final["step"], final["early_stop"]) == (result.num_steps, "left_the_data")
    assert (result.final_path / "COMMIT").is_file()
    again = train(read_resumed_config(result.metrics_path.parent), resume=True)
    assert (again.already_finished, again.stopped_by) == (True, "left_the_data")


def test_without_early_stop_a_rule_is_told_once(configure):
    """The same run goes on to its end, at last without a gradient; each rule says so once."""
    result = train(configure(train=ABSURD))
    assert (result.num_steps, result.stopped_by) == (40, None)
    assert of_event(result, "early_stop") == []
    rules = [record["rule"] for record in of_event(result, "alarm")]
    assert rules == ["left_the_data", "gradient_gone"]


def strip(records):
    timing = ("wall_s", "tokens_per_s", "measured_in_s")
    return [{k: v for k, v in record.items() if k not in timing} for record in records]


def test_measuring_leaves_training_alone_and_survives_a_resume(configure, monkeypatch):
    """Same steps as without; a stop between measurements changes neither them nor the smoothing."""
    sections = {"train": {"epochs": 4, "learning_rate": 1e-3}}
    plain = train(configure("plain", **sections))
    sections["diagnostics"] = {"every_steps": 3}
    whole = train(configure("whole", **sections))

    def interrupt(record):
        if record.get("step") == 4 and "loss" in record:
            os.kill(os.getpid(), signal.SIGTERM)

    part = train(configure("part", **sections), progress=interrupt)
    assert part.interrupted
    resumed = train(read_resumed_config(part.metrics_path.parent), resume=True)
    steps = [strip(r for r in read_metrics(x.metrics_path) if "loss" in r) for x in (plain, whole)]
    assert steps[0] == steps[1]
    shared = set(steps[1][0]) & set(of_event(whole, "diagnostics")[0])
    assert shared == {"step", "epoch"}  # trackers have no other names twice at one step
    found, again = (strip(of_event(x, "diagnostics")) for x in (whole, resumed))
    assert [record["step"] for record in found] == [0, 3, 6]
    assert found == again


def test_a_measurement_says_what_it_measured(configure, bandit):
    """Two prompts of four whole turns each; every number against transformers' own scores."""
    result = train(configure(diagnostics={"every_steps": 1, "samples": 8}))
    first = of_event(result, "diagnostics")[0]
    assert (first["step"], first["z"], first["num_answers"], first["num_prompts"]) == (
        0,
        "turn",
        8,
        2,
    )
    assert first["mi_limit"] == pytest.approx(math.log(2))
    assert first["chance_at_1"] == 0.5
    assert first["answer_tokens"] == 16
    assert first["mi_zscore_ema_per_token"] == first["mi_zscore_per_token"]
    assert first["row_tokens_computed"] < first["row_tokens"] == 16 * 6


def test_mutual_information_of_a_run_by_other_means(configure, hand, model_folder):
    """The first measurement, recomputed pair by pair in plain Python."""
    result = train(configure(diagnostics={"every_steps": 9, "samples": 8}))
    policy = load_policy(ModelSection(path=str(model_folder), device="cpu"))
    prompts = [[0, 20, 21, 60], [0, 20, 21, 61]]
    gains, rates = [], []
    for own, prompt in enumerate(prompts):
        for answer in ([40, 1], [50, 1]):
            scores = [float(hand.score(policy, p, answer).sum()) for p in prompts]
            mixed = math.log(sum(math.exp(score) for score in scores) / 2)
            gains.append(scores[own] - mixed)
            means = [score / 2 for score in scores]
            rates.append(means[own] - math.log(sum(math.exp(mean) for mean in means) / 2))
            assert prompt in prompts
    (first,) = of_event(result, "diagnostics")
    assert first["mi_per_sequence"] == pytest.approx(np.mean(gains), abs=1e-5)
    assert first["mi_per_token"] == pytest.approx(np.mean(rates), abs=1e-5)


def test_ess_floor_ends_the_epoch(configure):
    """No step below the floor is taken, and each refusal is said."""
    result = train(
        configure(algorithm={"ess_floor": 0.9}, train={"epochs": 4, "trajectories_per_step": 2})
    )
    stops = of_event(result, "ess_floor")
    steps = [r for r in read_metrics(result.metrics_path) if "loss" in r]
    assert stops
    assert all(record["ess_fraction"] < 0.9 for record in stops)
    assert all(record["ess_fraction"] >= 0.9 for record in steps)
    assert len(steps) == result.num_steps < 16


def test_foreign_model_below_the_floor_is_refused(configure, hand, tmp_path):
    """A model far from the recorded policy cannot take even one step."""
    from starpo_train.errors import DataError

    other = hand.model(tmp_path / "other", seed=5)
    with pytest.raises(DataError, match=r"before the first step, below algorithm\.ess_floor"):
        train(configure(base=other, algorithm={"ess_floor": 0.9}))


def test_floor_outside_its_range_is_refused(hand, model_folder, bandit, tmp_path):
    """It is a share."""
    file = hand.run_file(
        tmp_path / "run.toml", base=model_folder, dataset=bandit, algorithm={"ess_floor": 1.5}
    )
    with pytest.raises(ConfigError, match=r"algorithm\.ess_floor = 1\.5: must be between 0 and 1"):
        read_run_config(file)


def test_terminal_says_what_was_measured_and_why_a_run_ended(configure):
    """One line for each."""
    from rich.console import Console

    from starpo_train.progress import TrainingDisplay

    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    with TrainingDisplay(console) as display:
        config = configure(train=ABSURD, diagnostics={"early_stop": True, "every_steps": 8})
        result = train(config, progress=display.show)
    display.print_end(result)
    text = console.export_text()
    assert "step 0: prompts and turn: " in text
    assert f"stopped early by {result.stopped_by}: " in text
    assert SimpleNamespace(**of_event(result, "early_stop")[0]).reason in text
    console.file.close()
