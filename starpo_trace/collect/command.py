"""`starpo-trace collect`: its options."""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starpo_trace.config import parse_bytes
from starpo_trace.errors import ConfigError

if TYPE_CHECKING:  # a command line without `collect` pays for none of it
    from starpo_trace.collect.access import Address, TlsFiles
    from starpo_trace.collect.limits import Limits

_MIN_STORE: Final = 4096  # a smaller one takes no request
_MAX_SECONDS: Final = 86_400
_MOST: Final = {
    "max_body_bytes": (1 << 31) - 1,  # gRPC counts in 32 bits
    "max_requests": 1_000_000,
    "body_timeout_s": _MAX_SECONDS,
}
_LIMIT_OPTIONS: Final = {
    "max_body_bytes": "body as sent (default: 16M)",
    "max_decompressed_bytes": "body after decompression (default: 64M)",
    "max_spans": "spans in a request (default: 50000)",
    "max_attribute_bytes": "one attribute (default: 8M)",
    "max_requests": "requests worked on at once (default: 64)",
    "max_held_bytes": "bodies held at once (default: 256M)",
}


def add_collect_command(commands: Any) -> None:
    """Add `collect` to the commands of `starpo-trace`."""
    parser = commands.add_parser("collect", help="receive OTLP spans into a trace store")
    parser.add_argument("--store", type=Path, required=True, help="trace store folder")
    parser.add_argument(
        "--http",
        default="127.0.0.1:4318",
        metavar="HOST:PORT",
        help="or off (default: %(default)s)",
    )
    parser.add_argument(
        "--grpc",
        default="127.0.0.1:4317",
        metavar="HOST:PORT",
        help="or off (default: %(default)s)",
    )
    parser.add_argument(
        "--token-file", type=Path, help="bearer tokens, one a line; read again when it changes"
    )
    parser.add_argument("--tls-cert", type=Path, help="certificate chain, PEM")
    parser.add_argument("--tls-key", type=Path, help="its private key, PEM")
    parser.add_argument("--client-ca", type=Path, help="let in only clients with its certificates")
    parser.add_argument(
        "--insecure", action="store_true", help="listen beyond this machine without TLS"
    )
    parser.add_argument("--max-store-bytes", type=_parse_bytes, metavar="N", help="as 500M or 10G")
    for name, text in _LIMIT_OPTIONS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=_parse_bytes, metavar="N", help=text
        )
    parser.add_argument("--body-timeout-s", type=float, metavar="S", help="(default: 30)")
    parser.add_argument(
        "--report-every-s", type=float, default=10.0, metavar="S", help="0 for no progress lines"
    )
    parser.set_defaults(command=_collect)


def _collect(options: argparse.Namespace) -> int:
    try:
        import grpc  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"collect needs the package {error.name}: pip install 'starpo[collect]'"
        ) from error
    from starpo_trace.collect.access import Tokens, read_environment_token
    from starpo_trace.collect.serve import CollectConfig, report, run_collect

    if options.report_every_s != 0:
        _check_range("report_every_s", options.report_every_s, _MAX_SECONDS)
    if options.max_store_bytes is not None:
        _check_range("max_store_bytes", options.max_store_bytes, sys.maxsize, least=_MIN_STORE)
    run_collect(
        CollectConfig(
            store=options.store,
            http=parse_address(options.http, "--http"),
            grpc=parse_address(options.grpc, "--grpc"),
            tokens=Tokens(
                file=options.token_file, variable=read_environment_token(), on_change=report
            ),
            tls=_read_tls(options),
            insecure=options.insecure,
            max_store_bytes=options.max_store_bytes,
            limits=_read_limits(options),
            report_every_s=options.report_every_s,
        )
    )
    return 0


def parse_address(text: str, option: str) -> "Address | None":
    """`HOST:PORT`, `[IPV6]:PORT` or `off` -> address.

    Raises:
        ConfigError: it is none of these.
    """
    from starpo_trace.collect.access import Address

    if text == "off":
        return None
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{option} {text}: write HOST:PORT, as 127.0.0.1:4318, or off")
    return Address(host=host, port=int(port))


def _read_tls(options: argparse.Namespace) -> "TlsFiles | None":
    from starpo_trace.collect.access import TlsFiles

    if options.tls_cert is None and options.tls_key is None and options.client_ca is None:
        return None
    if options.tls_cert is None or options.tls_key is None:
        raise ConfigError("TLS needs both --tls-cert and --tls-key")
    return TlsFiles(cert=options.tls_cert, key=options.tls_key, client_ca=options.client_ca)


def _read_limits(options: argparse.Namespace) -> "Limits":
    from starpo_trace.collect.limits import DEFAULT_LIMITS, Limits

    names = {field.name for field in fields(Limits)}
    given = {
        name: value for name, value in vars(options).items() if name in names and value is not None
    }
    for name, value in given.items():
        _check_range(name, value, _MOST.get(name, sys.maxsize))
    return replace(DEFAULT_LIMITS, **given)


def _check_range(name: str, value: float, most: float, *, least: float = 0) -> None:
    is_enough = value >= least if least else value > 0
    if not (is_enough and value <= most):
        low = f"at least {least:,}" if least else "above 0"
        raise ConfigError(f"--{name.replace('_', '-')} {value}: must be {low} and at most {most:,}")


def _parse_bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
