"""The trajectory dataset on disk: tables, columns, types. The only thing both packages share.

A dataset is a folder of Delta tables and a `manifest.json` that names the version of each table
that belongs together; the manifest is written last, so a killed build leaves the last dataset
intact. Types are names, not objects, so that this module needs no data library.
"""

from typing import Final

DATASET_SCHEMA_VERSION: Final = "3"

MANIFEST_FILE: Final = "manifest.json"
VERSIONS_FOLDER: Final = "versions"
"""Manifests of the dataset's versions, by digest: what a pin `DATASET@DIGEST` is read through."""

REWARD_SOURCES: Final = ("environment", "user", "rule", "judge")
"""Who can say what a run was worth."""

TRAJECTORIES: Final[dict[str, str]] = {
    "trajectory_id": "str",
    "task_id": "str",  # null: the run named no task; StarPO compares within a task
    "attempt": "i64",
    "seed": "i64",
    "policy_id": "str",
    "environment_name": "str",
    "environment_version": "str",
    "cohort": "str",
    "conversation_id": "str",
    "user_id": "str",  # for whom it ran, where a span says so: `user.id` or `enduser.id`
    "agent_name": "str",
    "trace_id": "str",
    "source": "str",  # path of the store or file the root span came from
    "end": "str",  # terminated | truncated | abandoned | error | unknown
    "started_ns": "i64",
    "ended_ns": "i64",  # null while the root span never ended
    "num_parts": "i64",  # processes that recorded it: 1, more when called, forked or resumed
    "num_turns": "i64",  # LLM calls
    "num_steps": "i64",  # spans that carry a step
    "num_tool_calls": "i64",  # calls the model asked for
    "num_messages": "i64",  # nodes of the message graph
    "num_branches": "i64",  # leaves of the message graph
    "reward": "f64",  # trusted trajectory-scope outcome reward, latest; or as the recipe says
    # what the recipe added up: weight * value; null without its rules, value null when missing
    "reward_parts": "list[struct[name:str,value:f64,weight:f64]]",
    "input_tokens": "i64",  # null when any turn lacks usage
    "output_tokens": "i64",
    "usable_for": "str",  # rl | sft | none
    "reasons": "list[str]",  # why not better: no_reward, missing_turn, no_content ...
    "tool_names": "list[str]",  # tools offered or called, sorted; null without a turn
    "signature": "str",  # hash of the first user message, digits masked, and the tools offered
    "content_digest": "str",  # hash of observations and actions; null where either is missing
    "task_sketch": "list[i32]",  # MinHash of the first user message, where the recipe asks
    "content_sketch": "list[i32]",  # MinHash of the whole, where the recipe asks
    "group_id": "str",  # attempts at the same thing, by task unless the recipe says otherwise
    "split": "str",  # train | validation | test: by group, never within one
    "distribution": "str",  # id | ood | unknown
    "policy_lag": "i64",  # policies between this one and the current; null when unknown
    "duplicate_of": "str",  # trajectory that is kept in its place
    "excluded_because": "list[str]",  # not to be trained on: first reason first; empty when kept
    "digest": "str",  # of its turns, messages, states and rewards: equal content, equal digest
}

TURNS: Final[dict[str, str]] = {
    "trajectory_id": "str",
    "turn": "i64",  # 0.. in the order of the trajectory
    "step": "i64",
    "step_kind": "str",
    "span_id": "str",
    "started_ns": "i64",
    "ended_ns": "i64",
    "model": "str",
    "temperature": "f64",
    "top_p": "f64",
    "top_k": "f64",
    "finish_reason": "str",
    "outcome": "str",  # ok | error | cut | closed | dropped | cancelled
    "error": "str",
    "input_node": "str",  # message graph node the prompt ends at
    "output_node": "str",  # node of the sampled message
    "input_tokens": "i64",
    "output_tokens": "i64",
    "reasoning": "str",
    "text": "str",
    "tool_calls": "list[struct[id:str,name:str,arguments:str]]",  # arguments verbatim
    "tool_definitions": "str",  # JSON list as sent
    "prompt_base_turn": "i64",  # turn whose prompt + response ids begin this prompt; null: none
    "prompt_base_length": "i64",  # how many of those ids; 0 when prompt_base_turn is null
    "prompt_token_ids": "list[i32]",  # the rest of the prompt; null when ids were not recorded
    "response_token_ids": "list[i32]",
    "response_logprobs": "list[f64]",
    "token_provenance": "str",  # exact | redacted (ids of masked tokens are negative) | missing
    "logprob_provenance": "str",  # exact | estimated | redacted (null where masked) | missing
    "reward": "f64",  # sum of trusted step/turn-scope process rewards; or as the recipe says
    "shaping": "f64",  # sum of weight * value of the recipe's shaping; null when one is missing
    "shaping_parts": "list[struct[name:str,value:f64,weight:f64]]",
}

MESSAGES: Final[dict[str, str]] = {
    "trajectory_id": "str",
    "node_id": "str",  # chain hash: identifies the message and everything before it
    "parent_id": "str",  # null at the beginning of a history
    "depth": "i64",
    "role": "str",
    "message": "str",  # GenAI message JSON, verbatim
    "sampled_turn": "i64",  # turn that sampled it; null: the model only read it
    "first_turn": "i64",  # first turn that saw or produced it; null: an observation after the last
}

STATES: Final[dict[str, str]] = {
    "trajectory_id": "str",
    "step": "i64",
    "name": "str",
    "hash": "str",
    "value": "str",  # JSON, diffs applied
    "time_ns": "i64",
}

REWARDS: Final[dict[str, str]] = {
    "trajectory_id": "str",
    "reward_id": "str",
    "name": "str",
    "value": "f64",
    "scope": "str",
    "kind": "str",
    "source": "str",
    "min": "f64",
    "max": "f64",
    "turn": "i64",
    "step": "i64",
    "judge_id": "str",
    "judge_prompt_hash": "str",
    "explanation": "str",
    "time_ns": "i64",
    "span_id": "str",
    "signature": "str",  # valid | invalid | missing | unchecked (the build had no keys)
    "key_id": "str",  # key that the signature names
    "verifier_digest": "str",
    "trusted": "bool",
    "untrusted_because": "str",  # null when trusted
    "superseded": "bool",  # a later record has the same reward_id
}

SPANS: Final[dict[str, str]] = {  # where each trajectory came from, span by span
    "trajectory_id": "str",
    "trace_id": "str",
    "span_id": "str",
    "record": "str",  # trajectory | part | agent | llm | step | state | observation | reward
    "step": "i64",
    "turn": "i64",  # of a call
    "source": "str",
}

REJECTED: Final[dict[str, str]] = {
    "source": "str",
    "trace_id": "str",
    "span_id": "str",
    "name": "str",
    "scope": "str",
    "reason": "str",
    "detail": "str",
}

TABLES: Final[dict[str, dict[str, str]]] = {
    "trajectories": TRAJECTORIES,
    "turns": TURNS,
    "messages": MESSAGES,
    "states": STATES,
    "rewards": REWARDS,
    "spans": SPANS,
    "rejected": REJECTED,
}
