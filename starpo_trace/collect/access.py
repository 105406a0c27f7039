"""Who may send: bearer tokens, TLS, and which addresses may be opened without them."""

import errno
import hashlib
import hmac
import ipaddress
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starpo_trace.collect.refusals import Reason, RefusedError
from starpo_trace.errors import ConfigError

TOKEN_VARIABLE: Final = "STARPO_COLLECT_TOKEN"  # noqa: S105  (the name, not a token)
_MIN_TOKEN_LENGTH: Final = 16
_PASSING_ERRORS: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""Read errors that say nothing about what the token file's owner wants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where one server listens."""

    host: str
    """Name or IP address."""
    port: int
    """TCP port; 0 lets the system choose."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name: who knows where it leads
            return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of the server."""

    cert: Path
    """Certificate, with the chain behind it."""
    key: Path
    """Its private key."""
    client_ca: Path | None = None
    """Authorities whose clients are let in; None asks clients for no certificate."""


class Tokens:
    """The bearer tokens that are good now; a changed file is read again.

    A file that was removed, or no longer holds usable tokens, lets nobody in: whoever empties it
    may be taking back a token that leaked.
    """

    def __init__(
        self,
        *,
        file: Path | None = None,
        variable: str | None = None,
        on_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Tokens one a line in `file`, and separated by space or comma in `variable`.

        `on_change` is told in words what became of a changed file.

        Raises:
            ConfigError: the file cannot be read or holds none, or a token is too short.
        """
        self._file = file
        self._on_change = on_change
        self._trouble = ""
        self._fixed = _digest_tokens((variable or "").replace(",", " ").split(), TOKEN_VARIABLE)
        self._from_file: list[bytes] = []
        self._stamp: tuple[int, ...] | None = None
        if file is not None:
            try:
                self._read_file(file)
            except OSError as error:
                problem = error.strerror or error
                raise ConfigError(f"--token-file {file}: cannot be read: {problem}") from error
        elif variable is not None and not self._fixed:
            raise ConfigError(f"{TOKEN_VARIABLE} is empty; set it to a token or unset it")

    @property
    def is_required(self) -> bool:
        """Whether requests need one."""
        return self._file is not None or bool(self._fixed)

    def check(self, authorization: str | None) -> None:
        """Let a request pass by the value of its `Authorization` header.

        Raises:
            RefusedError: it brings no token that is good now.
        """
        if not self.is_required:
            return
        self._read_changes()
        scheme, _, token = (authorization or "").partition(" ")
        digest = _digest(token.strip())
        # All are compared, each in constant time: the time taken tells nothing.
        matches = [hmac.compare_digest(digest, good) for good in self._fixed + self._from_file]
        if scheme.lower() != "bearer" or not any(matches):
            raise RefusedError(
                Reason.UNAUTHENTICATED, "send the header `Authorization: Bearer TOKEN`"
            )

    def _read_changes(self) -> None:
        if self._file is None:
            return
        try:
            if not self._read_file(self._file):
                return
            trouble = ""
            news = f"--token-file {self._file}: read again; tokens that are good: {len(self._from_file)}"
        except OSError as error:
            self._stamp = None
            trouble = f"--token-file {self._file}: cannot be read: {error.strerror or error}"
            if error.errno in _PASSING_ERRORS:
                news = f"{trouble}; the tokens read last stay good"
            else:
                self._from_file = []
                news = f"{trouble}; its tokens are refused until it can be"
        except ConfigError as error:
            self._from_file = []
            trouble = str(error)
            news = f"{trouble}; until then the tokens it held are refused"
        if trouble != self._trouble or not trouble:
            self._on_change(news)
        self._trouble = trouble

    def _read_file(self, file: Path) -> bool:
        """Take the file's tokens; whether it has changed since the last time."""
        status = file.stat()
        # With the time of the last change of its mode, by which it may be taken away from us.
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return False
        content = file.read_bytes()
        self._stamp = stamp
        try:
            text = content.decode("ascii")
        except UnicodeDecodeError as error:
            problem = "holds characters that no header can carry; write tokens in ASCII"
            raise ConfigError(f"--token-file {file}: {problem}") from error
        lines = [line.strip() for line in text.splitlines()]
        tokens = [line for line in lines if line and not line.startswith("#")]
        if not tokens:
            raise ConfigError(f"--token-file {file}: holds no token; write one a line")
        self._from_file = _digest_tokens(tokens, f"--token-file {file}")
        return True


def check_exposure(
    addresses: list[Address], *, tokens: Tokens, tls: TlsFiles | None, insecure: bool
) -> list[str]:
    """Addresses and protection -> warnings.

    Raises:
        ConfigError: others could reach a server that does not protect itself.
    """
    exposed = [address for address in addresses if not address.is_loopback]
    if not exposed:
        return []
    has_client_ca = tls is not None and tls.client_ca is not None
    if not tokens.is_required and not has_client_ca:
        raise ConfigError(
            f"{exposed[0]} can be reached from other machines, and anybody could write to the "
            f"store: give --token-file FILE (or {TOKEN_VARIABLE}, or --client-ca), "
            "or listen on 127.0.0.1"
        )
    if tls is not None:
        return []
    if not insecure:
        raise ConfigError(
            f"{exposed[0]} can be reached from other machines, and spans and token would travel "
            "in clear text: give --tls-cert and --tls-key, or --insecure where a proxy ends TLS"
        )
    return [f"{exposed[0]} speaks no TLS (--insecure): spans and token travel in clear text"]


def load_tls(files: TlsFiles) -> ssl.SSLContext:
    """PEM files -> context of a server.

    Raises:
        ConfigError: one of them cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.cert, files.key, password="")  # else it may ask
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"--tls-cert {files.cert}, --tls-key {files.key}: {error}") from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except OSError as error:
            raise ConfigError(f"--client-ca {files.client_ca}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def read_environment_token() -> str | None:
    """Value of the variable that holds tokens; None when it is not set."""
    return os.environ.get(TOKEN_VARIABLE)


def _digest_tokens(tokens: list[str], where: str) -> list[bytes]:
    for token in tokens:
        if len(token) < _MIN_TOKEN_LENGTH:
            raise ConfigError(
                f"{where}: a token of {len(token)} characters can be guessed; use at least "
                f"{_MIN_TOKEN_LENGTH}, for example from `openssl rand -hex 32`"
            )
    return [_digest(token) for token in tokens]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
