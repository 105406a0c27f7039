"""Files of recorded runs, written by hand, buckets of such files, and what becomes of them."""

import json
import os
from contextlib import closing
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from msgspec.structs import replace
from otlp_lines import write_lines

from starpo_trace.convert.dataset import convert_sources


@pytest.fixture
def convert(tmp_path):
    """Name in a folder -> value, or text -> the conversion of that folder, which always closes."""

    def convert_files(files, *sources):
        for name, value in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, bytes):
                path.write_bytes(value)
            else:
                path.write_text(value if isinstance(value, str) else json.dumps(value))
        conversion = convert_sources([tmp_path / each for each in sources] or [tmp_path])
        assert conversion.accounting.is_closed
        return conversion

    return convert_files


@pytest.fixture
def reasons():
    """Conversion -> reason and detail of everything that was rejected."""

    def list_reasons(conversion):
        return conversion.tables["rejected"].select("name", "reason", "detail").rows()

    return list_reasons


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real runs."""
    return Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="module")
def endpoint():
    """URL of a server that speaks S3."""
    from bucket_server import serve_s3  # needs packages that not every environment has

    with serve_s3() as url:
        yield url


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Function that sets the environment's AWS variables, and no others; a machine without any."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))

    def set_settings(**values):
        for name, value in values.items():
            monkeypatch.setenv(f"AWS_{name}", value)

    return set_settings


@pytest.fixture
def bucket(endpoint, settings):
    """An empty bucket, and an environment that leads to it."""
    from bucket_server import REGION, Bucket

    with urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")):
        pass
    settings(
        ENDPOINT_URL=endpoint, REGION=REGION, ACCESS_KEY_ID="reader", SECRET_ACCESS_KEY="secret"
    )
    bucket = Bucket(endpoint)
    with closing(bucket.client):
        yield bucket


@pytest.fixture
def make_run(spans):
    """Number -> the spans of a run of two calls, with its reward."""

    def make(number):
        user = {"role": "user", "content": f"question {number}"}
        answer = {"role": "assistant", "content": f"answer {number}"}
        root = spans.root(f"run-{number}", num_steps=2, **{"starpo.task.id": f"task-{number}"})
        calls = [
            spans.call(root, 0, [user], answer, delta=False),
            spans.call(root, 1, [user, answer, user], answer, delta=False),
        ]
        rows = [root, *calls, spans.reward(root, 1.0, **{"starpo.reward.id": f"r{number}"})]
        trace = f"{number + 1:032x}"
        return [
            replace(row, trace_id=trace, links=tuple((trace, span) for _, span in row.links))
            for row in rows
        ]

    return make


@pytest.fixture
def lines(make_run, tmp_path):
    """Number -> the run as the Collector's JSON lines."""

    def make(number):
        write_lines(tmp_path / "lines.jsonl", make_run(number))
        return (tmp_path / "lines.jsonl").read_bytes()

    return make
