"""File that is one JSON array of records -> a batch for each."""

from collections.abc import Iterator
from itertools import chain

from starpo_trace.convert.otlp import DecodeError
from starpo_trace.convert.sources.batches import SpanBatch, make_batch, make_damage
from starpo_trace.convert.sources.compression import open_text
from starpo_trace.convert.sources.documents import DOCUMENT_FORMATS
from starpo_trace.convert.sources.files import SourceFile
from starpo_trace.convert.sources.jsonarrays import Broken, iterate_elements

_FORMATS = tuple(form for form in DOCUMENT_FORMATS if form.is_array)


def read_array_batches(file: SourceFile) -> Iterator[SpanBatch]:
    """Array of a form that is read one element at a time -> batches; else nothing at all."""
    with open_text(file.path) as stream:
        elements = iterate_elements(stream, _is_known)
        first, form = [], None
        for element in elements:
            first.append(element)
            if not isinstance(element, Broken):
                form = next((form for form in _FORMATS if form.matches(element)), None)
                break
        if form is None:
            return
        for number, element in enumerate(chain(first, elements)):
            if isinstance(element, Broken):
                yield make_damage(file.path, number, element.reason, "element")
                continue
            try:
                yield make_batch(form.read(element, file))
            except DecodeError as error:
                yield make_damage(file.path, number, str(error), "element")


def _is_known(value: object) -> bool:
    return any(form.matches(value) for form in _FORMATS)
