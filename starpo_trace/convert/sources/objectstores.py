"""Objects of a bucket -> what there is below a prefix, and local copies.

By boto3, so that endpoint, region, profile and credentials are found as every AWS tool finds them.
A key is any text: it is never taken for a path, and may have empty segments, `..` and percent signs.
"""

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from starpo_trace.convert.sources.objectfaults import explain_fault
from starpo_trace.errors import SourceError

_URL: Final = re.compile(r"s3://(?P<bucket>[^/]*)(?:/(?P<key>.*))?", re.DOTALL)
_COLLAPSED: Final = re.compile(r"[a-z][a-z0-9]+:/[^/]")
_OTHER_STORES: Final = re.compile(r"(s3[an]|gs|gcs|az|azure|adl|abfss?|wasbs?|https?|hdfs)://")
_CONNECT_TIMEOUT_S: Final = 10
_MAX_ATTEMPTS: Final = 3
"""For an object whose download breaks off; requests are tried again by botocore."""
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object, as a listing or its download described it."""

    bucket: str
    """Name of the bucket."""
    key: str
    """Name of the object in it."""
    num_bytes: int
    """Its size."""
    etag: str | None
    """What the store calls this content."""
    changed_ns: int
    """When it was last written, Unix time."""

    @property
    def url(self) -> str:
        """What people call it; the key as it is, as in AWS's own tools."""
        return f"s3://{self.bucket}/{self.key}"


def is_object_url(source: Path | str) -> bool:
    """Whether a source is in an object store.

    Raises:
        SourceError: it is a URL, but of a kind that is not read.
    """
    if isinstance(source, Path):
        return False
    if found := _OTHER_STORES.match(source):
        raise SourceError(
            f"{source}: {found[0]} is not read; name it as s3://BUCKET/PREFIX, or copy it to a folder "
            "and name that"
        )
    return _URL.fullmatch(source) is not None


def is_collapsed_url(path: Path) -> bool:
    """Whether a path was made of a URL, which lost a slash then."""
    return _COLLAPSED.match(str(path)) is not None


def split_url(url: str) -> tuple[str, str]:
    """URL -> bucket and key.

    Raises:
        SourceError: it names no bucket.
    """
    found = _URL.fullmatch(url)
    if found is None or not found["bucket"]:
        raise SourceError(f"{url}: no bucket; write s3://BUCKET/PREFIX")
    return found["bucket"], found["key"] or ""


@contextmanager
def open_store(url: str) -> Iterator[Any]:
    """URL, for errors -> boto3's client for S3.

    Raises:
        SourceError: boto3 is missing, or the settings in the environment cannot be used.
    """
    try:
        from boto3.session import Session
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise SourceError(
            f"{url}: for object stores the package boto3 is missing; "
            "pip install 'starpo[objectstores]'"
        ) from None
    is_public = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in {"1", "true"}
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S, signature_version=UNSIGNED if is_public else None
    )
    try:
        client = Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise SourceError(f"{url}: {explain_fault(error, None)}") from error
    try:
        yield client
    finally:
        client.close()


def list_objects(
    client: Any, bucket: str, prefix: str, *, most: int | None = None
) -> Iterator[Any]:
    """Objects whose keys begin with a prefix, in the order of their keys.

    Args:
        client: of `open_store`.
        bucket: name of the bucket.
        prefix: what keys begin with.
        most: how many; None: all.

    Raises:
        SourceError: they cannot be listed.
    """
    paging = {} if most is None else {"MaxItems": most, "PageSize": most}
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=prefix, PaginationConfig=paging
    )
    with explained_faults(f"s3://{bucket}/{prefix}", client):
        for page in pages:
            for entry in page.get("Contents", ()):
                yield StoredObject(
                    bucket=bucket,
                    key=entry["Key"],
                    num_bytes=entry["Size"],
                    etag=entry.get("ETag"),
                    changed_ns=_to_ns(entry["LastModified"]),
                )


def fetch_object(client: Any, stored: StoredObject, path: Path) -> StoredObject:
    """Object -> a file with its bytes; what the object was at that moment.

    Raises:
        SourceError: it is gone, may not be read, or does not arrive.
    """
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    path.parent.mkdir(parents=True, exist_ok=True)
    with explained_faults(stored.url, client):
        for _ in range(_MAX_ATTEMPTS - 1):
            with suppress(HTTPClientError, IncompleteReadError):  # it broke off
                return _download(client, stored, path)
        return _download(client, stored, path)


def _download(client: Any, stored: StoredObject, path: Path) -> StoredObject:
    answer = client.get_object(Bucket=stored.bucket, Key=stored.key)
    with closing(answer["Body"]) as body, path.open("wb") as file:
        for piece in body.iter_chunks(_PIECE_BYTES):
            file.write(piece)
    return StoredObject(
        bucket=stored.bucket,
        key=stored.key,
        num_bytes=answer["ContentLength"],
        etag=answer.get("ETag"),
        changed_ns=_to_ns(answer["LastModified"]),
    )


@contextmanager
def explained_faults(url: str, client: Any) -> Iterator[None]:
    """Errors of boto3 -> SourceError that names the URL, what is wrong and what to do."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        fault = explain_fault(error, client.meta.endpoint_url)
        raise SourceError(f"{url}: {fault}") from error


def _to_ns(time: datetime) -> int:
    """Time -> Unix time in ns, exactly."""
    since = time - datetime.fromtimestamp(0, UTC)
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000
