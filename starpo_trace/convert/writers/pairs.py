"""Trajectories -> TRL's preference pairs, and the unpaired form that KTO reads.

A pair is two trajectories of one task whose conversations begin with the same prompt and tools and
whose rewards differ. `prompt` is all that the two have in common before an answer, `chosen` and
`rejected` what followed. Of a trajectory with several conversations the one counts that its last
answer ended.

Of each task and prompt the rewards are sorted, ties by trajectory id: first the best is paired with
the worst, the second best with the second worst and so on, then, while the limit allows it, each
with the next worst, until no pair with the least difference is left.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from starpo_trace.convert.writers.chatmessages import UnwritableError
from starpo_trace.convert.writers.conversations import (
    Chat,
    encode_json,
    list_conversations,
)
from starpo_trace.convert.writers.report import Tally
from starpo_trace.convert.writers.stream import TrajectoryRows
from starpo_trace.convert.writers.wholefile import Spool
from starpo_trace.messages import dump_json


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRule:
    """Which pairs are made."""

    min_gap: float = 0.0
    """Least difference of the rewards; equal ones make no pair."""
    max_pairs: int = 4
    """Most pairs of one task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A trajectory that may be one side of a pair."""

    trajectory_id: str
    """Its id."""
    reward: float
    """What it was worth."""
    number: int
    """Where its conversation is in the spool."""


def write_pairs(
    trajectories: Iterable[TrajectoryRows], tally: Tally, spool: Spool, rule: PairRule
) -> Iterator[bytes]:
    """Trajectories -> lines with `prompt`, `chosen`, `rejected`, and `tools` where there are some."""
    tasks: dict[str, dict[bytes, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    for each in trajectories:
        try:
            chat, num_read, tools = _read_candidate(each)
        except UnwritableError as error:
            tally.left_out[str(error)] += 1
            continue
        key = blake2b(encode_json([chat[:num_read], tools]), digest_size=16).digest()
        candidate = Candidate(
            trajectory_id=each.id,
            reward=each.row["reward"],
            number=spool.add({"chat": chat, "tools": tools}),
        )
        tasks[each.row["task_id"]][key].append(candidate)
    for task in sorted(tasks):
        yield from _write_task(task, tasks[task], tally, spool, rule)


def list_pairs(
    candidates: Sequence[Candidate], min_gap: float
) -> Iterator[tuple[Candidate, Candidate]]:
    """Candidates of one prompt -> every pair (better, worse), in the order of the rule."""
    best = sorted(candidates, key=lambda each: (-each.reward, each.trajectory_id))
    worst = sorted(candidates, key=lambda each: (each.reward, each.trajectory_id))
    for shift in range(len(candidates)):
        for place, better in enumerate(best):
            worse = worst[(place + shift) % len(worst)]
            gap = better.reward - worse.reward
            if gap > 0 and gap >= min_gap:
                yield better, worse


def write_unpaired(
    trajectories: Iterable[TrajectoryRows], tally: Tally, *, desirable_from: float
) -> Iterator[bytes]:
    """Trajectories -> lines with `prompt`, `completion`, `label`: whether it was worth that much."""
    for each in trajectories:
        try:
            chat, num_read, tools = _read_candidate(each, needs_task=False)
            line: dict[str, Any] = {
                "prompt": chat[:num_read],
                "completion": chat[num_read:],
                "label": each.row["reward"] >= desirable_from,
            }
            text = encode_json(_add_tools(line, tools))
        except UnwritableError as error:
            tally.left_out[str(error)] += 1
            continue
        tally.num_trajectories += 1
        tally.num_written += 1
        yield text


def _read_candidate(
    trajectory: TrajectoryRows, *, needs_task: bool = True
) -> tuple[Chat, int, list[dict[str, Any]] | None]:
    """A trajectory -> its last conversation, how many messages of it are the prompt, and the tools.

    Raises:
        UnwritableError: it cannot be compared at all.
    """
    if trajectory.row["reward"] is None:
        raise UnwritableError("no_reward")
    if needs_task and trajectory.row["task_id"] is None:
        raise UnwritableError("no_task")
    conversations = list_conversations(trajectory)
    if not conversations:
        raise UnwritableError("no_answer")
    chat = conversations[-1].write_template_chat()
    tools = conversations[-1].write_tools()
    encode_json([chat, tools])
    num_read = conversations[-1].count_prompt()
    if num_read == 0:
        raise UnwritableError("no_prompt")
    return chat, num_read, tools


def _write_task(
    task: str,
    prompts: dict[bytes, list[Candidate]],
    tally: Tally,
    spool: Spool,
    rule: PairRule,
) -> Iterator[bytes]:
    num_pairs = 0
    reasons: dict[str, str] = {}
    for key in sorted(prompts, key=lambda key: min(each.trajectory_id for each in prompts[key])):
        candidates = prompts[key]
        alone = "alone_with_its_prompt" if len(candidates) == 1 else "no_other_reward"
        reasons |= {each.trajectory_id: alone for each in candidates}
        for pair in list_pairs(candidates, rule.min_gap):
            if num_pairs >= rule.max_pairs:
                reasons |= _over_limit(candidates, rule, reasons)
                break
            line = _build_pair(task, pair, spool)
            ids = [each.trajectory_id for each in pair]
            if line is None:
                reasons |= {each: "no_difference" for each in ids if reasons[each]}
                continue
            reasons |= dict.fromkeys(ids, "")
            num_pairs += 1
            tally.num_written += 1
            yield line
    for reason in reasons.values():
        if reason:
            tally.left_out[reason] += 1
        else:
            tally.num_trajectories += 1


def _over_limit(
    candidates: Sequence[Candidate], rule: PairRule, reasons: dict[str, str]
) -> dict[str, str]:
    """Unpaired candidates that the limit alone kept from a pair -> that reason."""
    rewards = [each.reward for each in candidates]
    low, high = min(rewards), max(rewards)
    return {
        each.trajectory_id: "over_limit"
        for each in candidates
        if reasons[each.trajectory_id]
        and max(each.reward - low, high - each.reward) >= rule.min_gap
        and high > low
    }


def _build_pair(task: str, pair: tuple[Candidate, Candidate], spool: Spool) -> bytes | None:
    """Two candidates -> their line; None where one says nothing that the other does not."""
    better, worse = (spool.read(each.number) for each in pair)
    chosen, rejected = better["chat"], worse["chat"]
    shared = _count_shared(chosen, rejected)
    if shared in (len(chosen), len(rejected)):
        return None
    line = {
        "prompt": chosen[:shared],
        "chosen": chosen[shared:],
        "rejected": rejected[shared:],
        "task_id": task,
        "chosen_id": pair[0].trajectory_id,
        "rejected_id": pair[1].trajectory_id,
        "chosen_reward": pair[0].reward,
        "rejected_reward": pair[1].reward,
    }
    return encode_json(_add_tools(line, better["tools"]))


def _count_shared(chosen: Chat, rejected: Chat) -> int:
    """Messages at the beginning that are equal, and after which both give an answer."""
    shared = 0
    for place, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if one["role"] == other["role"] == "assistant":
            shared = place
        if one != other:
            return shared
    return min(len(chosen), len(rejected))


def _add_tools(line: dict[str, Any], tools: list[dict[str, Any]] | None) -> dict[str, Any]:
    # As text: in a table of all lines, every tool would have every other tool's parameters too.
    return line if not tools else {**line, "tools": dump_json(tools)}
