"""What may go wrong with a bucket -> an error that names the URL and what to do; nothing lost."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from socket import socket
from urllib.request import Request, urlopen

import boto3
import pytest
from bucket_server import NAME, REGION, URL, serve_answers, serve_broken

from starpo_trace.convert.dataset import build_dataset, convert_sources
from starpo_trace.convert.manifest import BUILD_FOLDER, read_manifest
from starpo_trace.errors import DatasetError, SourceError


def refuse(*sources, dataset):
    """Sources that cannot be read -> the error, which leaves the dataset as it was."""
    before = read_manifest(dataset) if dataset.exists() else None
    with pytest.raises(SourceError) as caught:
        build_dataset(sources, dataset)
    after = read_manifest(dataset) if dataset.exists() else None
    assert after == before
    text = str(caught.value)
    assert "\n" not in text
    assert BUILD_FOLDER not in text
    return text


def test_an_object_that_goes_away_after_the_listing(bucket, tmp_path, lines):
    """It is named, and the last dataset is intact; the next build is whole again."""
    bucket.put("t/0.json", lines(0))
    bucket.put("t/1.json", lines(1))
    dataset = tmp_path / "dataset"
    build_dataset([f"{URL}/t"], dataset)
    bucket.put("t/2.json", lines(2))
    before = read_manifest(dataset)

    def remove(stage, done, total):
        if (stage, done) == ("reading", 0):
            bucket.delete("t/2.json")

    with pytest.raises(SourceError) as caught:
        build_dataset([f"{URL}/t"], dataset, progress=remove)
    assert str(caught.value) == (
        f"{URL}/t/2.json: the object was removed meanwhile; run it again on what is there now"
    )
    assert read_manifest(dataset) == before
    assert build_dataset([f"{URL}/t"], dataset).digest == before.digest


def test_what_is_not_there_says_so(bucket, endpoint, tmp_path):
    """A bucket, a prefix, a URL without a bucket."""
    bucket.put("t/notes.txt", b"x")
    dataset = tmp_path / "dataset"
    missing = refuse("s3://no-such-bucket/t", dataset=dataset)
    assert missing.startswith(f"s3://no-such-bucket/t: there is no such bucket at {endpoint}; ")
    assert refuse(f"{URL}/t", dataset=dataset).startswith(
        f"{URL}/t: no span files below this prefix"
    )
    assert "no span files below" in refuse(f"{URL}/none", dataset=dataset)
    assert refuse("s3://", dataset=dataset) == "s3://: no bucket; write s3://BUCKET/PREFIX"
    assert "Invalid bucket name" in refuse("s3://a bucket/x", dataset=dataset)


def test_a_named_object_that_is_none_of_ours(bucket, tmp_path):
    """As a file that somebody names: its URL, never its copy, is in the error."""
    bucket.put("a.bin", b"\x00\xff")
    bucket.put("empty.json", b"")
    dataset = tmp_path / "dataset"
    assert refuse(f"{URL}/a.bin", dataset=dataset).startswith(f"{URL}/a.bin: binary data, 2 bytes")
    assert refuse(f"{URL}/empty.json", dataset=dataset) == f"{URL}/empty.json: the file is empty"


@pytest.mark.parametrize("url", ["gs://b/p", "az://c/p", "abfss://c@a.dfs.core.windows.net/p"])
def test_other_stores_say_what_to_do(tmp_path, url):
    """They are not read."""
    text = refuse(url, dataset=tmp_path / "dataset")
    assert text.startswith(f"{url}: {url.partition('//')[0]}// is not read; ")


@pytest.fixture
def strict(bucket, endpoint):
    """A user who may do what the function is called with, on a server that checks it."""
    admin = {"aws_access_key_id": "admin", "aws_secret_access_key": "admin"}
    iam = boto3.client("iam", endpoint_url=endpoint, region_name=REGION, **admin)

    def allow(*actions):
        iam.create_user(UserName="reader")
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        check_requests(endpoint, after=0)
        return {"ACCESS_KEY_ID": key["AccessKeyId"], "SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    with closing(iam):
        yield allow
    check_requests(endpoint, after=float("inf"))


def check_requests(endpoint, *, after):
    request = Request(
        f"{endpoint}/moto-api/reset-auth",
        data=str(after).encode(),
        headers={"Content-Type": "text/plain"},
    )
    with urlopen(request):
        pass


def test_access_is_denied_to_objects(bucket, strict, settings, tmp_path, lines):
    """Listing is allowed and reading is not: the object is named, with what is needed."""
    bucket.put("t/0.json", lines(0))
    settings(**strict("s3:ListBucket"))
    text = refuse(f"{URL}/t", dataset=tmp_path / "dataset")
    assert text.startswith(f"{URL}/t/0.json: access denied at ")
    assert "s3:GetObject" in text


def test_access_is_denied_to_the_bucket(bucket, strict, settings, tmp_path, lines):
    """Nothing is allowed; with the rights it is read, by a signed request that is checked."""
    bucket.put("t/0.json", lines(0))
    keys = strict("s3:GetObject")
    settings(**keys)
    assert "s3:ListBucket" in refuse(f"{URL}/t", dataset=tmp_path / "dataset")
    settings(ACCESS_KEY_ID="AKIANOBODY", SECRET_ACCESS_KEY="x")
    text = refuse(f"{URL}/t", dataset=tmp_path / "dataset")
    assert "the credentials are refused" in text
    assert "InvalidAccessKeyId" in text
    settings(ACCESS_KEY_ID=keys["ACCESS_KEY_ID"], SECRET_ACCESS_KEY="wrong")
    assert "SignatureDoesNotMatch" in refuse(f"{URL}/t", dataset=tmp_path / "dataset")


def test_a_reader_with_the_rights_that_are_asked_for(bucket, strict, settings, lines):
    """`s3:ListBucket` and `s3:GetObject` are enough."""
    bucket.put("t/0.json", lines(0))
    settings(**strict("s3:ListBucket", "s3:GetObject"))
    assert convert_sources([f"{URL}/t"]).accounting.spans_used == 4


def test_no_credentials(settings, endpoint, tmp_path):
    """What to set is said; a public bucket needs none."""
    settings(ENDPOINT_URL=endpoint, REGION=REGION)
    text = refuse(f"{URL}/t", dataset=tmp_path / "dataset")
    assert text.startswith(f"{URL}/t: no credentials were found; set AWS_PROFILE")
    settings(PROFILE="nobody")
    assert "(nobody) could not be found" in refuse(f"{URL}/t", dataset=tmp_path / "dataset")


def test_a_public_bucket(bucket, settings, monkeypatch, lines):
    """Requests without a signature, where there are no credentials."""
    bucket.client.put_bucket_acl(Bucket=NAME, ACL="public-read")
    bucket.put("t/0.json", lines(0), ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    settings(SKIP_SIGNATURE="true")
    assert convert_sources([f"{URL}/t"]).accounting.spans_used == 4


def test_a_profile(bucket, endpoint, settings, monkeypatch, tmp_path, lines):
    """Endpoint, region and keys of AWS's own files."""
    bucket.put("t/0.json", lines(0))
    for name in ("ENDPOINT_URL", "REGION", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    (tmp_path / "aws-config").write_text(
        f"[profile agents]\nregion = {REGION}\nendpoint_url = {endpoint}\n"
    )
    (tmp_path / "aws-credentials").write_text(
        "[agents]\naws_access_key_id = a\naws_secret_access_key = b\n"
    )
    settings(PROFILE="agents")
    assert convert_sources([f"{URL}/t"]).accounting.spans_used == 4


def test_wrong_endpoints(bucket, settings, tmp_path):
    """Nobody listens; somebody else answers; it is no URL."""
    dataset = tmp_path / "dataset"
    with closing(socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        settings(ENDPOINT_URL=nobody, MAX_ATTEMPTS="1")
        text = refuse(f"{URL}/t", dataset=dataset)
    assert text.startswith(f"{URL}/t: no answer at {nobody} (")
    assert "AWS_ENDPOINT_URL" in text

    def answer(status, body):
        def send(handler):
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        return send

    for status, body in ((404, b"<html>none</html>"), (200, b"<html>hello"), (200, b"hello")):
        with serve_answers(answer(status, body)) as url:
            settings(ENDPOINT_URL=url)
            text = refuse(f"{URL}/t", dataset=dataset)
            assert url in text
            assert "AWS_ENDPOINT_URL" in text
    settings(ENDPOINT_URL="localhost:9000")
    assert "write AWS_ENDPOINT_URL as http" in refuse(f"{URL}/t", dataset=dataset)


def test_a_download_that_breaks_off_is_tried_again(bucket, endpoint, settings, tmp_path, lines):
    """Twice broken off it arrives whole; for good, it is named and nothing counts."""
    bucket.put("t/0.json", lines(0))
    expected = convert_sources([f"{URL}/t"])
    with serve_broken(endpoint, num_cuts=2) as url:
        settings(ENDPOINT_URL=url)
        conversion = convert_sources([f"{URL}/t"])
    assert conversion.sources == expected.sources
    with serve_broken(endpoint, num_cuts=1000) as url:
        settings(ENDPOINT_URL=url)
        text = refuse(f"{URL}/t", dataset=tmp_path / "dataset")
    assert text.startswith(f"{URL}/t/0.json: ")
    assert text.endswith("run it again")


def test_datasets_are_local(tmp_path, monkeypatch):
    """A URL as output is refused before a folder of that name is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DatasetError, match="datasets are built in a local folder"):
        build_dataset([tmp_path / "a.json"], Path("s3://bucket/dataset"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_url_that_became_a_path(tmp_path):
    """It lost a slash, so it is asked for as text."""
    with pytest.raises(SourceError, match="a path that was made of a URL; "):
        convert_sources([Path("s3://bucket/x")])


def test_without_boto3_the_extra_is_named(tmp_path):
    """And local sources need none."""
    program = (
        "import sys; sys.modules['boto3'] = None\n"
        "from starpo_trace.cli import main\n"
        "sys.exit(main(['export', 's3://b/p', '-o', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "d")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "boto3 is missing; pip install 'starpo[objectstores]'" in done.stderr
