"""A partition's trajectories, turns and messages -> what curation must know of each trajectory.

Each row depends on its own trajectory alone, so partitions may be described apart.
"""

from typing import Any, Final

import orjson
import polars as pl

from starpo_trace.convert.curation.sketch import sketch_texts
from starpo_trace.convert.curation.stable import digest_texts

_ID: Final = "trajectory_id"
_END: Final = "\x1e"
_FIELD: Final = "\x1f"
_CALL_ID: Final = r'("type":\s*"tool_call_response",\s*"id":\s*)"[^"]*"'
"""Drawn anew in every run, so no part of what happened."""
_UUID: Final = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
_WITH_DIGIT: Final = r"(?:\w+[.:/-])*\w*\d\w*(?:[.,:/-]\w+)*"
_JSON_FRAME: Final = r'"(?:role|parts|type|content|id|name|response|arguments)":(?:"(?:text|tool_call|tool_call_response|reasoning)")?'


def describe_trajectories(
    trajectories: pl.DataFrame,
    turns: pl.DataFrame,
    messages: pl.DataFrame,
    *,
    has_task_sketch: bool = False,
    has_content_sketch: bool = False,
) -> pl.DataFrame:
    """Tables of a partition -> `trajectory_id` and its columns for curation.

    `tool_names`: tools offered or called, sorted; null without a turn. `signature`: hash of the
    first user message, words with a digit masked, and of the tools offered in the first turn.
    `content_digest`: hash of observations and actions, without call ids; null where either is
    missing. Sketches, for near duplicates, only where asked for.
    """
    tools = _list_tools(turns)
    first = _first_user_texts(messages)
    observed = _join_observations(messages)
    acted = _join_actions(turns)
    table = (
        trajectories.select(_ID)
        .join(tools, on=_ID, how="left")
        .join(first, on=_ID, how="left")
        .join(observed, on=_ID, how="left")
        .join(acted, on=_ID, how="left")
    )
    signed = table.with_columns(
        signature=pl.concat_str(
            _mask("first_text"), pl.col("offered").list.join(_FIELD), separator=_END
        ),
        content=pl.concat_str("observed", "acted", separator=_END + _END),
    )
    described = signed.select(
        _ID,
        "tool_names",
        signature=digest_texts(signed["signature"]),
        content_digest=digest_texts(signed["content"]),
    )
    for name, column, is_wanted in (
        ("task_sketch", "first_text", has_task_sketch),
        ("content_sketch", "content", has_content_sketch),
    ):
        if is_wanted:
            texts = signed.select(_ID, text=pl.col(column).str.replace_all(_JSON_FRAME, " "))
            texts = texts.with_columns(pl.col("text").str.replace_all(r"\\[nrtbf]", " "))
            sketches = sketch_texts(texts.drop_nulls()).rename({"sketch": name})
            described = described.join(sketches, on=_ID, how="left")
        else:
            described = described.with_columns(pl.lit(None, pl.List(pl.Int32)).alias(name))
    return described


def _list_tools(turns: pl.DataFrame) -> pl.DataFrame:
    texts = turns["tool_definitions"].drop_nulls().unique()
    names = pl.DataFrame(
        {"tool_definitions": texts, "defined": [_read_names(text) for text in texts]},
        schema={"tool_definitions": pl.String, "defined": pl.List(pl.String)},
    )
    called = pl.col("tool_calls").list.eval(pl.element().struct.field("name"))
    by_turn = turns.join(names, on="tool_definitions", how="left").select(
        _ID, "turn", pl.col("defined").fill_null([]), called=called.fill_null([])
    )
    return by_turn.group_by(_ID).agg(
        tool_names=pl.concat_list("defined", "called")
        .list.explode(keep_nulls=False, empty_as_null=False)
        .drop_nulls()
        .unique()
        .sort(),
        offered=pl.col("defined").sort_by("turn").first(),
    )


def _read_names(text: str) -> list[str]:
    try:
        tools = orjson.loads(text)
    except ValueError:
        return []
    names = [_read_name(tool) for tool in tools] if isinstance(tools, list) else []
    return sorted({name for name in names if isinstance(name, str)})


def _read_name(tool: Any) -> Any:
    if not isinstance(tool, dict):
        return None
    function = tool.get("function")
    return tool.get("name") or (function.get("name") if isinstance(function, dict) else None)


def _first_user_texts(messages: pl.DataFrame) -> pl.DataFrame:
    return (
        messages.filter(pl.col("role") == "user")
        .sort(_ID, "depth", "first_turn", "message", nulls_last=True)
        .group_by(_ID, maintain_order=True)
        .agg(first_text=pl.col("message").first())
    )


def _mask(column: str) -> pl.Expr:
    return (
        pl.col(column)
        .str.to_lowercase()
        .str.replace_all(r"\\[nrtbf]", " ")
        .str.replace_all(_UUID, "#")
        .str.replace_all(_WITH_DIGIT, "#")
        .str.replace_all(r"\s+", " ")
    )


def _join_observations(messages: pl.DataFrame) -> pl.DataFrame:
    """What the model read and did not write itself."""
    masked = pl.col("message").str.replace_all(_CALL_ID, "$1#")
    return (
        messages.filter(pl.col("sampled_turn").is_null())
        .select(_ID, "depth", text=pl.concat_str("role", masked, separator=_FIELD))
        .sort(_ID, "depth", "text")
        .group_by(_ID, maintain_order=True)
        .agg(observed=pl.col("text").str.join(_END))
    )


def _join_actions(turns: pl.DataFrame) -> pl.DataFrame:
    """What the model wrote, turn by turn; null as a whole where a turn has nothing recorded."""
    calls = (
        pl.col("tool_calls")
        .fill_null([])
        .list.eval(
            pl.concat_str(
                pl.element().struct.field("name").fill_null(""),
                pl.element().struct.field("arguments").fill_null(""),
                separator=_FIELD,
            )
        )
        .list.join(_FIELD)
    )
    said = [pl.col(name).fill_null("") for name in ("reasoning", "text")]
    has_action = pl.col("text").is_not_null() | (pl.col("tool_calls").list.len() > 0)
    is_recorded = has_action.fill_null(value=False) | pl.col("outcome").ne("ok")
    return (
        turns.select(
            _ID,
            "turn",
            is_recorded=is_recorded,
            action=pl.concat_str(*said, calls, separator=_FIELD),
        )
        .sort(_ID, "turn")
        .group_by(_ID, maintain_order=True)
        .agg(
            acted=pl.when(pl.col("is_recorded").all()).then(pl.col("action").str.join(_END)),
        )
    )
