"""OTLP's outer messages with their spans left as bytes.

Two bytes of an OTLP body can ask for an empty span, which takes 180 bytes once parsed. Reading the
outer messages alone gives the number of spans before a single one is made, and a span that cannot
be read then costs itself and not its request. Every other field keeps its bytes.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2

_PACKAGE: Final = "starpo.collect"
_Field: Final = descriptor_pb2.FieldDescriptorProto


def _describe_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="starpo/collect/shells.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[resource_pb2.DESCRIPTOR.name, common_pb2.DESCRIPTOR.name],
    )
    _add_message(file, "Request", {"resource_spans": (1, None)})
    _add_message(
        file,
        "ResourceSpans",
        {
            "resource": (1, resource_pb2.Resource.DESCRIPTOR.full_name),
            "scope_spans": (2, None),
            "schema_url": (3, ""),
        },
    )
    _add_message(
        file,
        "ScopeSpans",
        {
            "scope": (1, common_pb2.InstrumentationScope.DESCRIPTOR.full_name),
            "spans": (2, None),
            "schema_url": (3, ""),
        },
    )
    return file


def _add_message(
    file: descriptor_pb2.FileDescriptorProto, name: str, fields: dict[str, tuple[int, str | None]]
) -> None:
    """Fields are (number, type): None for repeated bytes, empty for text, else a message."""
    message = file.message_type.add(name=name)
    for field_name, (number, kind) in fields.items():
        field = message.field.add(name=field_name, number=number)
        field.label = _Field.LABEL_REPEATED if kind is None else _Field.LABEL_OPTIONAL
        field.type = (
            _Field.TYPE_BYTES
            if kind is None
            else _Field.TYPE_MESSAGE
            if kind
            else _Field.TYPE_STRING
        )
        if kind:
            field.type_name = f".{kind}"


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(_describe_file().SerializeToString())


def _get_class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


RequestShell: Final = _get_class("Request")
ResourceShell: Final = _get_class("ResourceSpans")
ScopeShell: Final = _get_class("ScopeSpans")
