"""Rewards and texts -> was the reward shown to the agent, or read off the agent's own words?"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from starpo_train.guards.finding import GuardFinding
from starpo_train.guards.reading import Reward, Run, RunText, list_strings

MANY_LEAKS: Final = 0.05
"""Share of the runs read from which a leak is no accident."""
SAME_VALUE: Final = 0.9
"""Share of the runs that show a reward's name with a number, in which it is the run's own reward."""
FEWEST_RUNS: Final = 3
"""Runs that have to show it: one may be a coincidence."""
LONG_TEXT: Final = 40
"""Characters from which equal texts are no coincidence."""
_OWN_KEYS: Final = re.compile(r"starpo\.reward\.|gen_ai\.evaluation\.|verifier\.digest")
_NUMBER: Final = r"(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
_THOUGHTS: Final = frozenset(
    {"reasoning", "thought", "thoughts", "thinking", "cot", "rationale", "chain_of_thought"}
)


def check_thoughts_scored_as_evidence(
    runs: Sequence[Run], texts: Sequence[RunText]
) -> GuardFinding | None:
    """Rewards that are about reasoning, or whose text is reasoning; and what cannot be seen.

    A dataset records who judged, with which prompt's hash, and the explanation; not what the judge
    was shown. So a judge that decides alone on runs with reasoning is for somebody to look at.
    """
    named = sorted(
        {
            reward.name
            for run in runs
            for reward in run.rewards
            if reward.source in ("judge", "rule") and _is_about_thoughts(reward.name)
        }
    )
    num_copied = sum(_copies_reasoning(text) for text in texts)
    num_alone = sum(bool(text.reasoning) and _is_judged_alone(text.run) for text in texts)
    if not (named or num_copied or num_alone):
        return None
    numbers = {
        "num_runs_read": len(texts),
        "reward_names": named[:5],
        "num_runs_whose_reward_text_is_reasoning": num_copied,
        "num_runs_with_reasoning_that_only_judges_judged": num_alone,
    }
    if named or num_copied:
        found = [f"{', '.join(named[:5])} scores reasoning" if named else ""]
        found += [f"in {num_copied} runs a reward's text is reasoning" if num_copied else ""]
        explanation = "; ".join(each for each in found if each) + (
            ": reasoning is the model's own output and no evidence of what happened"
        )
    else:
        explanation = (
            f"{num_alone} of {len(texts)} runs read have reasoning, and judges alone say what they "
            "are worth; whether the judge was shown the reasoning is not recorded"
        )
    return GuardFinding(
        name="thoughts_scored_as_evidence",
        severity="warn" if named or num_copied else "review",
        numbers=numbers,
        explanation=explanation,
        advice=(
            "show judges the states, tool calls and results without the reasoning, and record a "
            "reward of an environment or a rule beside theirs"
        ),
    )


def check_reward_leakage(texts: Sequence[RunText]) -> GuardFinding | None:
    """The outcome, or the grader's words, in what the agent read or in states before its last call.

    Counted are keys that only Starpo's reward spans have; a reward's explanation of at least 40
    characters word for word; and a reward's name with a number behind it where, over all runs that
    show it (three at least), the number is the run's own outcome nine times in ten, while not all
    outcomes are equal.
    """
    keys = {i for i, text in enumerate(texts) if _shows_own_keys(text)}
    graders = {i for i, text in enumerate(texts) if _shows_explanation(text)}
    values, names = _find_shown_values(texts)
    leaking = keys | graders | values
    if not leaking:
        return None
    share = len(leaking) / len(texts)
    found = [f"reward keys in {len(keys)}" if keys else ""]
    found += [f"the grader's explanation in {len(graders)}" if graders else ""]
    found += [f"the outcome behind {', '.join(names[:3])} in {len(values)}" if values else ""]
    return GuardFinding(
        name="reward_leakage",
        severity="refuse" if share >= MANY_LEAKS else "warn",
        numbers={
            "num_runs_read": len(texts),
            "num_leaking": len(leaking),
            "num_with_reward_keys": len(keys),
            "num_with_explanation": len(graders),
            "num_with_value": len(values),
            "reward_names": names[:5],
            "examples": [texts[i].run.trajectory.trajectory_id for i in sorted(leaking)[:3]],
        },
        explanation=(
            f"{len(leaking)} of {len(texts)} runs read show the agent its reward before its last "
            f"answer ({'; '.join(each for each in found if each)}): the policy would learn to read "
            "it there, where no production run has it"
        ),
        advice=(
            "keep graders and their results out of prompts, tool results and states until the last "
            "call, and record those tasks again"
        ),
    )


def _is_about_thoughts(name: str) -> bool:
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return not _THOUGHTS.isdisjoint([*words, name.lower()])


def _copies_reasoning(text: RunText) -> bool:
    reasoning = [_plain(each) for each in text.reasoning]
    for explanation in _explanations(text.run):
        for thought in reasoning:
            if len(thought) >= LONG_TEXT and thought in explanation:
                return True
            if len(explanation) >= LONG_TEXT and explanation in thought:
                return True
    return False


def _is_judged_alone(run: Run) -> bool:
    outcomes = {reward.source for reward in run.rewards if reward.scope == "trajectory"}
    return outcomes == {"judge"}


def _shows_own_keys(text: RunText) -> bool:
    return any(_OWN_KEYS.search(each) for each in (*text.read, *text.states))


def _shows_explanation(text: RunText) -> bool:
    explanations = [each for each in _explanations(text.run) if len(each) >= LONG_TEXT]
    if not explanations:
        return False
    shown = [_plain(part) for each in (*text.read, *text.states) for part in list_strings(each)]
    return any(explanation in part for explanation in explanations for part in shown)


def _find_shown_values(texts: Sequence[RunText]) -> tuple[set[int], list[str]]:
    """Places in `texts` that show an outcome's own value behind its name, and these names."""
    shown: dict[str, dict[int, bool]] = defaultdict(dict)
    outcomes: dict[str, set[float]] = defaultdict(set)
    for i, text in enumerate(texts):
        for reward in _outcomes(text.run):
            outcomes[reward.name].add(reward.value)
            pattern = re.compile(
                rf"(?<![\w.]){re.escape(reward.name)}\\?[\"']?\s*[:=]\s*{_NUMBER}(?![\w.]*\d)"
            )
            numbers = [n for each in (*text.read, *text.states) for n in pattern.findall(each)]
            if numbers:
                shown[reward.name][i] = all(float(n) == reward.value for n in numbers)
    found: set[int] = set()
    names = []
    for name, same_of in sorted(shown.items()):
        num_same = sum(same_of.values())
        is_many = num_same >= max(FEWEST_RUNS, SAME_VALUE * len(same_of))
        varies = len({texts[i].run.trajectory.reward for i in same_of}) > 1
        if is_many and varies and len(outcomes[name]) > 1:
            names.append(name)
            found |= {i for i, is_same in same_of.items() if is_same}
    return found, names


def _outcomes(run: Run) -> list[Reward]:
    return [reward for reward in run.rewards if reward.scope == "trajectory"]


def _explanations(run: Run) -> list[str]:
    return [_plain(reward.explanation) for reward in run.rewards if reward.explanation]


def _plain(text: str) -> str:
    return " ".join(text.split()).lower()
