"""Python function -> a tool as chat completions want it: name, description, JSON schema.

Types are read by pydantic, which comes with the openai package.
"""

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from starpo_train.environments.calls import ToolError

_ARGS = re.compile(
    r"^\s*Args:\s*$(.*?)(?=^\s*(?:Returns|Raises|Yields|Example\w*):\s*$|\Z)", re.M | re.S
)
_ENTRY = re.compile(r"^\s*(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTool:
    """A function that a model may call; its first parameter is the environment's state."""

    name: str
    function: Callable[..., Any]
    schema: Mapping[str, Any]
    """As it is sent: `{"type": "function", "function": ...}`."""
    model: type[BaseModel]

    def call(self, state: Any, arguments: Mapping[str, Any]) -> Any:
        """Call it, the arguments as their annotations say.

        Raises:
            ToolError: they are none of these types.
        """
        try:
            read = self.model.model_validate(dict(arguments))
        except ValidationError as error:  # such as a text that is no date
            faults = [
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
            ]
            raise ToolError(
                f"the arguments of {self.name} do not fit: {'; '.join(faults)}"
            ) from error
        return self.function(state, **{name: getattr(read, name) for name in read.model_fields_set})


def make_function_tool(function: Callable[..., Any]) -> FunctionTool:
    """Typed function -> tool. Its docstring describes it, `Args:` its parameters.

    Raises:
        TypeError: a parameter without a type, of a type that JSON has not, or one that has no name.
    """
    name = getattr(function, "__name__", type(function).__name__)
    hints = typing.get_type_hints(function, include_extras=True)
    described = inspect.getdoc(function) or ""
    words = _read_args(described)
    fields: dict[str, Any] = {}
    for each in list(inspect.signature(function).parameters.values())[1:]:
        if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: *{each.name} cannot be a tool's parameter; name each")
        if each.name not in hints:
            raise TypeError(f"tool {name}: parameter {each.name!r} needs a type annotation")
        default = ... if each.default is each.empty else each.default
        fields[each.name] = (hints[each.name], Field(default, description=words.get(each.name)))
    try:
        model = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        parameters = _drop_titles(model.model_json_schema())
    except PydanticUserError as error:
        raise TypeError(f"tool {name}: {error}") from error
    parameters.pop("description", None)
    parameters.setdefault("properties", {})
    about = described.split("\n\n", 1)[0].replace("\n", " ")
    shown = {"name": name, "description": about, "parameters": parameters}
    return FunctionTool(
        name=name,
        function=function,
        schema={"type": "function", "function": shown},
        model=model,
    )


def _read_args(described: str) -> dict[str, str]:
    """Docstring -> what its `Args:` say of each parameter."""
    found = _ARGS.search(described)
    words: dict[str, str] = {}
    last = None
    for line in found[1].splitlines() if found else ():
        entry = _ENTRY.match(line)
        if entry:
            last = entry[1]
            words[last] = entry[2].strip()
        elif last and line.strip():
            words[last] += f" {line.strip()}"
    return words


def _drop_titles(schema: Any) -> Any:
    """Without the titles that pydantic makes of names; a parameter named `title` stays."""
    if isinstance(schema, list):
        return [_drop_titles(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _drop_titles(each) for name, each in value.items()}
        if key in ("properties", "$defs") and isinstance(value, dict)
        else _drop_titles(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }
