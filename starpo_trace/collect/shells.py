"""OTLP's outer messages, of spans and of log records alike, each of their fields left as bytes.

Two bytes of an OTLP body can ask for an empty span, which takes 180 bytes once parsed. Reading the
outer messages alone gives the number of spans before a single one is made, and a span that cannot
be read then costs itself and not its request.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE: Final = "starpo.collect"
_Field: Final = descriptor_pb2.FieldDescriptorProto


def _describe_file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="starpo/collect/shells.proto", package=_PACKAGE, syntax="proto3"
    )
    _add_message(file, "Request", {"groups": 1})
    # Repeated like the others: a second `resource` is merged into the first by OTLP's readers.
    _add_message(file, "Group", {"resource": 1, "scopes": 2, "schema_url": 3})
    _add_message(file, "Scope", {"scope": 1, "records": 2, "schema_url": 3})
    return file


def _add_message(
    file: descriptor_pb2.FileDescriptorProto, name: str, fields: dict[str, int]
) -> None:
    message = file.message_type.add(name=name)
    for field_name, number in fields.items():
        message.field.add(
            name=field_name, number=number, label=_Field.LABEL_REPEATED, type=_Field.TYPE_BYTES
        )


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(_describe_file().SerializeToString())


def _get_class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


RequestShell: Final = _get_class("Request")
ResourceShell: Final = _get_class("Group")
ScopeShell: Final = _get_class("Scope")
