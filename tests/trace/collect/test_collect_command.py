"""`starpo-trace collect` as a person runs it: start, refusals, signals, crashes, TLS."""

import http.client
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys

import grpc
import pytest
import trustme
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from starpo_trace.cli import main
from starpo_trace.collect.access import Address, Tokens, check_exposure
from starpo_trace.collect.command import parse_address
from starpo_trace.errors import ConfigError
from starpo_trace.store.segments import list_segments

TOKEN = "0123456789abcdef"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    # The last two win over the certificate that an exporter is given.
    for name in ("STARPO_COLLECT_TOKEN", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def record_trajectories(exporter):
    """Ten trajectories through the SDK's batch processor."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    for number in range(10):
        names = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "agent"}
        with tracer.start_as_current_span(f"invoke_agent {number}", attributes=names):
            step = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look"}
            with tracer.start_as_current_span("execute_tool look", attributes=step):
                pass
    assert provider.force_flush()
    provider.shutdown()


def test_what_exporters_send_becomes_a_dataset(collect, tmp_path):
    """HTTP with gzip and gRPC in, SIGTERM, then `starpo-trace export` uses every span."""
    pytest.importorskip("polars")
    from starpo_trace.convert.manifest import read_manifest

    receiver = collect()
    record_trajectories(
        HttpExporter(f"http://127.0.0.1:{receiver.http}/v1/traces", compression=Compression.Gzip)
    )
    record_trajectories(GrpcExporter(f"http://127.0.0.1:{receiver.grpc}", insecure=True))
    assert receiver.stop() == 0
    assert "40 spans acknowledged, 0 rejected; 2 requests answered" in receiver.lines[-1]
    assert [path.suffix for path in list_segments(receiver.store)] == [".otlp"]
    assert main(["export", str(receiver.store), "-o", str(tmp_path / "dataset")]) == 0
    assert read_manifest(tmp_path / "dataset").accounting.spans_read == 40


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_flight(collect, helpers, number):
    """A body that is half sent when the signal comes is read, stored and answered."""
    receiver = collect()
    body = helpers.make_request(1, a="x" * 1000).SerializeToString()
    connection = socket.create_connection(("127.0.0.1", receiver.http), timeout=30)
    connection.sendall(
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body[:100]
    )
    while not helpers.read_stats(receiver.http)["requests"]["active"]:
        pass
    receiver.process.send_signal(number)
    receiver.wait_for("stopping")
    connection.sendall(body[100:])
    with connection:
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert receiver.process.wait(180) == 0
    assert helpers.stored_ids(receiver.store) == [1]
    assert [path.suffix for path in list_segments(receiver.store)] == [".otlp"]


def test_the_second_interrupt_ends_at_once(collect, helpers):
    """Also while a client is slow; what was acknowledged is on disk."""
    receiver = collect()
    body = helpers.make_request(1).SerializeToString()
    assert helpers.post(receiver.http, body).status == 200
    with socket.create_connection(("127.0.0.1", receiver.http), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            b"Content-Length: 100\r\n\r\nx"
        )
        while not helpers.read_stats(receiver.http)["requests"]["active"]:
            pass
        receiver.process.send_signal(signal.SIGINT)
        receiver.wait_for("stopping")
        assert receiver.stop(signal.SIGINT) == 130
    assert receiver.lines[-1].endswith("ended at once; requests in flight were not acknowledged")
    assert helpers.stored_ids(receiver.store) == [1]


def test_kill_9_loses_nothing_that_was_acknowledged(collect, helpers):
    """The segment stays unsealed and readable."""
    receiver = collect()
    for number in range(1, 6):
        body = helpers.make_request(number).SerializeToString()
        assert helpers.post(receiver.http, body).status == 200
    assert receiver.stop(signal.SIGKILL) == -signal.SIGKILL
    assert helpers.stored_ids(receiver.store) == [1, 2, 3, 4, 5]
    assert [path.name[-5:] for path in list_segments(receiver.store)] == [".open"]


def test_a_file_size_limit_is_outlived(collect, helpers):
    """The system refuses writes to the process, then allows them again."""
    receiver = collect()
    body = helpers.make_request(1).SerializeToString()
    limits = resource.prlimit(receiver.process.pid, resource.RLIMIT_FSIZE, (4, -1))
    refused = [helpers.post(receiver.http, body).status for _ in range(3)]
    receiver.wait_for("requests are sent away with 503")
    resource.prlimit(receiver.process.pid, resource.RLIMIT_FSIZE, limits)
    assert (refused, helpers.post(receiver.http, body).status) == ([503] * 3, 200)
    receiver.wait_for("can be written again")
    assert helpers.stored_ids(receiver.store) == [1]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls(authority, tmp_path):
    """Certificate options for 127.0.0.1, and the authority's file."""
    cert = authority.issue_cert("127.0.0.1", "localhost")
    paths = {name: tmp_path / f"{name}.pem" for name in ("cert", "key", "ca")}
    paths["cert"].write_bytes(b"".join(part.bytes() for part in cert.cert_chain_pems))
    paths["key"].write_bytes(cert.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(paths["ca"]))
    return ["--tls-cert", paths["cert"], "--tls-key", paths["key"]], paths["ca"]


def test_tls_and_token_on_both_protocols(collect, helpers, tls, tmp_path):
    """The SDK's exporters send with the certificate's authority and a bearer token."""
    options, ca = tls
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    receiver = collect(*options, "--token-file", file)
    headers = {"authorization": f"Bearer {TOKEN}"}
    record_trajectories(
        HttpExporter(
            f"https://127.0.0.1:{receiver.http}/v1/traces",
            certificate_file=str(ca),
            headers=headers,
        )
    )
    credentials = grpc.ssl_channel_credentials(ca.read_bytes())
    record_trajectories(
        GrpcExporter(f"https://127.0.0.1:{receiver.grpc}", credentials=credentials, headers=headers)
    )
    assert receiver.stop() == 0
    assert len(helpers.stored_ids(receiver.store)) == 40


def test_a_client_authority_lets_in_only_its_clients(collect, helpers, tls, authority):
    """Both protocols ask for a certificate; one without is not even listened to."""
    options, ca = tls
    receiver = collect(*options, "--client-ca", ca)
    body = helpers.make_request(1).SerializeToString()
    context = ssl.create_default_context(cafile=str(ca))

    def send():
        connection = http.client.HTTPSConnection(
            "127.0.0.1", receiver.http, context=context, timeout=30
        )
        try:
            connection.request(
                "POST", "/v1/traces", body, {"content-type": "application/x-protobuf"}
            )
            return connection.getresponse().status
        finally:
            connection.close()

    with pytest.raises((ssl.SSLError, ConnectionError)):
        send()
    client = authority.issue_cert("client")
    client.configure_cert(context)
    assert send() == 200
    anonymous = grpc.ssl_channel_credentials(ca.read_bytes())
    with (
        grpc.secure_channel(f"127.0.0.1:{receiver.grpc}", anonymous) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary(EXPORT)(body, timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    known = grpc.ssl_channel_credentials(
        ca.read_bytes(),
        client.private_key_pem.bytes(),
        b"".join(part.bytes() for part in client.cert_chain_pems),
    )
    with grpc.secure_channel(f"127.0.0.1:{receiver.grpc}", known) as channel:
        channel.unary_unary(EXPORT)(body, timeout=30)
    assert helpers.stored_ids(receiver.store) == [1, 1]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--http", "0.0.0.0:4318"], "0.0.0.0:4318 can be reached from other machines, and any"),
        (["--grpc", "[::]:4317"], "[::]:4317 can be reached from other machines, and anybody"),
        (["--http", "off", "--grpc", "off"], "nothing to listen on"),
        (["--http", "4318"], "--http 4318: write HOST:PORT"),
        (["--http", "x:99999"], "--http x:99999: write HOST:PORT"),
        (["--tls-cert", "/none"], "TLS needs both --tls-cert and --tls-key"),
        (["--tls-cert", "/none", "--tls-key", "/none"], "--tls-cert /none, --tls-key /none: "),
        (["--token-file", "/none"], "--token-file /none: cannot be read"),
        (["--max-spans", "0"], "--max-spans 0: must be above 0"),
        (["--body-timeout-s", "nan"], "--body-timeout-s nan: must be above 0"),
        (["--body-timeout-s", "1e300"], "--body-timeout-s 1e+300: must be above 0 and at most 86"),
        (["--max-body-bytes", "10G"], "--max-body-bytes 10737418240: must be above 0 and at most"),
        (["--report-every-s", "nan"], "--report-every-s nan: must be above 0 and at most 86,400"),
        (["--report-every-s", "-1"], "--report-every-s -1.0: must be above 0 and at most 86,400"),
        (["--max-store-bytes", "0"], "--max-store-bytes 0: must be at least 4,096"),
    ],
)
def test_a_wrong_start_is_one_line_that_says_what_to_do(tmp_path, capsys, options, problem):
    """Nothing is opened, and the exit status is 1."""
    assert main(["collect", "--store", str(tmp_path / "s"), *options]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert problem in lines[0]


def test_a_token_file_must_be_text(tmp_path, capsys):
    """Whatever else was named by mistake."""
    (tmp_path / "key").write_bytes(bytes(range(256)))
    options = ["--store", str(tmp_path / "s"), "--token-file", str(tmp_path / "key")]
    assert main(["collect", *options]) == 1
    assert "holds characters that no header can carry" in capsys.readouterr().err


def test_a_token_that_can_be_guessed_is_refused(tmp_path, capsys, monkeypatch):
    """The message does not repeat it."""
    monkeypatch.setenv("STARPO_COLLECT_TOKEN", "secret")
    assert main(["collect", "--store", str(tmp_path / "s")]) == 1
    message = capsys.readouterr().err
    assert "STARPO_COLLECT_TOKEN: a token of 6 characters can be guessed" in message
    assert "secret" not in message


@pytest.mark.parametrize("option", ["--http", "--grpc"])
def test_a_port_in_use_is_one_line(tmp_path, capfd, option):
    """With the option that names it."""
    other = {"--http": "--grpc", "--grpc": "--http"}[option]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = [option, address, other, "127.0.0.1:0"]
        assert main(["collect", "--store", str(tmp_path / "s"), *options]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if "starpo-trace: " in line]
    assert lines == [
        f"starpo-trace: {option} {address}: the port is in use; stop the program that holds it, "
        "or choose another port"
    ]


def test_a_store_that_cannot_be_written_is_one_line(tmp_path, capsys):
    """Said at the start, not at the first request."""
    (tmp_path / "file").write_text("")
    assert main(["collect", "--store", str(tmp_path / "file" / "s")]) == 1
    assert "cannot be written: Not a directory" in capsys.readouterr().err


def test_a_missing_package_names_the_extra(tmp_path):
    """`collect` is an extra; the rest of the command line works without."""
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from starpo_trace.cli import main\n"
        f"sys.exit(main(['collect', '--store', {str(tmp_path)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert (done.returncode, done.stderr) == (
        1,
        "starpo-trace: collect needs the package uvicorn: pip install 'starpo[collect]'\n",
    )


def test_the_command_line_stays_light():
    """Other commands import no server."""
    code = "import starpo_trace.cli, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert sorted(loaded & {"uvicorn", "grpc", "starpo_trace.collect.serve"}) == []
    assert "starpo_trace.collect.command" in loaded


def test_exposure_needs_a_token_and_tls_or_a_word():
    """A loopback address needs nothing; `--insecure` warns."""
    open_address = Address(host="10.0.0.1", port=4318)
    tokens = Tokens(variable=TOKEN)
    loopbacks = [Address(host=host, port=1) for host in ("127.0.0.1", "::1", "localhost")]
    assert check_exposure(loopbacks, tokens=Tokens(), tls=None, insecure=False) == []
    with pytest.raises(ConfigError, match="give --tls-cert and --tls-key, or --insecure"):
        check_exposure([open_address], tokens=tokens, tls=None, insecure=False)
    with pytest.raises(ConfigError, match="anybody could write"):
        check_exposure([open_address], tokens=Tokens(), tls=None, insecure=True)
    warnings = check_exposure([open_address], tokens=tokens, tls=None, insecure=True)
    assert warnings == [
        "10.0.0.1:4318 speaks no TLS (--insecure): spans and token travel in clear text"
    ]


def test_addresses_are_read():
    """Names, IPv4, IPv6, and off."""
    assert parse_address("off", "--http") is None
    assert parse_address("[::1]:5", "--http") == Address(host="::1", port=5)
    assert str(parse_address("[::1]:5", "--http")) == "[::1]:5"
    assert parse_address("localhost:5", "--http") == Address(host="localhost", port=5)
