"""Reward + key -> signature, and back: who a reward is really from.

An agent can write any span it likes, rewards too. A verifier that holds a key signs what it says
(HMAC-SHA-256), and whoever builds the dataset can tell its rewards from the agent's. A signature
holds for one trajectory and one task, so it is worth nothing on another.

Keys are named, so that they can be replaced: a key file has a line `id hex` for each, the first of
them signs, all of them verify. Key bytes never leave a `Keyring`: not in its text, not in errors.
"""

import errno
import hmac
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from starpo_trace.errors import ConfigError

KEY_VARIABLE: Final = "STARPO_REWARD_KEY"
KEY_FILE_VARIABLE: Final = "STARPO_REWARD_KEY_FILE"
_FORMAT: Final = "v1"
_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SIGNATURE: Final = re.compile(r"v1:([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")
_MIN_KEY_BYTES: Final = 16
_NEW_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedReward:
    """Everything about a reward that its signature covers."""

    trajectory_id: str
    """The run that was judged."""
    task_id: str | None
    """Its task; None when it has none."""
    reward_id: str
    """Identity of the reward."""
    name: str
    """What was measured."""
    value: float
    """The reward."""
    scope: str
    """What was judged: step, turn, trajectory."""
    step: int | None
    """Step that was judged."""
    kind: str
    """process or outcome."""
    source: str
    """Who judged."""
    signed_ns: int
    """When it was signed, Unix time: of two with the same id the later one counts, also when an
    earlier one is sent again."""
    verifier_digest: str | None
    """Hash of the verifier's code or image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """Keys by id; the first signs, all verify."""

    keys: Mapping[str, bytes] = field(repr=False)
    """Key id -> key."""
    is_exposed: bool = False
    """Whether the file they came from can be read by other users of the machine."""

    @property
    def key_ids(self) -> list[str]:
        """Ids of the keys, the signing one first."""
        return list(self.keys)


def sign_reward(reward: SignedReward, keyring: Keyring) -> str:
    """Reward -> `v1:<key id>:<hex>` with the first key."""
    key_id, key = next(iter(keyring.keys.items()))
    return f"{_FORMAT}:{key_id}:{_digest(reward, key)}"


def read_key_id(signature: str) -> str | None:
    """Signature -> id of the key it names; None when it is no signature."""
    match = _SIGNATURE.fullmatch(signature)
    return None if match is None else match[1]


def find_signature_fault(reward: SignedReward, signature: str, keyring: Keyring) -> str | None:
    """None when the signature is the reward's, else what is wrong with it, in words."""
    match = _SIGNATURE.fullmatch(signature)
    if match is None:
        return "the signature is not of the form v1:<key id>:<hex>"
    key_id = match[1]
    key = keyring.keys.get(key_id)
    if key is None:
        return f"key {key_id} is not among the keys"
    if not hmac.compare_digest(_digest(reward, key), match[2]):
        return f"key {key_id} did not sign this reward"
    return None


def parse_key(text: str, where: str) -> tuple[str, bytes]:
    """`id:hex` or `id hex` -> key id and key.

    Raises:
        ConfigError: it is neither, or the key is shorter than 16 bytes. Names `where`, not the key.
    """
    # Errors show no part of the line: whoever mixes up its order has a key where the id belongs.
    key_id, _, digits = text.strip().replace(":", " ", 1).partition(" ")
    if not _KEY_ID.fullmatch(key_id) or not digits.strip():
        raise ConfigError(
            f"{where}: no `id hex`; write the id (1 to 64 letters, digits, `.`, `_`, `-`), a space "
            "and the key in hexadecimal"
        )
    try:
        key = bytes.fromhex(digits.strip())
    except ValueError:
        raise ConfigError(
            f"{where}: the key is not hexadecimal; make one with `starpo-trace keys new`"
        ) from None
    if len(key) < _MIN_KEY_BYTES:
        raise ConfigError(
            f"{where}: the key has {len(key)} bytes, at least {_MIN_KEY_BYTES} are needed; make "
            "one with `starpo-trace keys new`"
        )
    return key_id, key


def read_keyring(path: str | os.PathLike[str]) -> Keyring:
    """Key file -> keyring. Empty lines and lines that begin with `#` are skipped.

    Raises:
        ConfigError: the file cannot be read, holds no key, or a line is wrong (the error says
            which).
    """
    file = Path(path)
    keys = _parse_keys(_read_text(file), file)
    if not keys:
        raise ConfigError(f"key file {file}: holds no key; make one with `starpo-trace keys new`")
    return Keyring(keys=keys, is_exposed=bool(stat.S_IMODE(file.stat().st_mode) & 0o077))


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"key file {file}: cannot be read ({type(error).__name__})") from None


def _parse_keys(text: str, file: Path) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key_id, key = parse_key(line, f"key file {file}, line {number}")
        if key_id in keys:
            raise ConfigError(f"key file {file}, line {number}: its key id is there twice")
        keys[key_id] = key
    return keys


def find_keyring(environment: Mapping[str, str] = os.environ) -> Keyring | None:
    """Keyring of `STARPO_REWARD_KEY` (`id:hex`), else of `STARPO_REWARD_KEY_FILE`, if any.

    Raises:
        ConfigError: what is there cannot be used.
    """
    if text := environment.get(KEY_VARIABLE):
        return Keyring(keys=dict([parse_key(text, KEY_VARIABLE)]))
    if path := environment.get(KEY_FILE_VARIABLE):
        return read_keyring(path)
    return None


def write_new_key(path: str | os.PathLike[str], key_id: str) -> None:
    """Put a new random key at the head of a key file, made (mode 0600, in a folder of mode 0700) if need be.

    A file that is there keeps its owner, group and mode, and a symbolic link stays one. Several
    processes may do it at once.

    Raises:
        ConfigError: the key id cannot be used or is there already, or the file cannot be written.
    """
    file = Path(path)
    if not _KEY_ID.fullmatch(key_id):
        raise ConfigError(f"key id {key_id!r}: use 1 to 64 letters, digits, `.`, `_`, `-`")
    try:
        target = file.resolve()
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _lock_folder(target.parent):
            older = _read_text(file) if target.exists() else ""
            if key_id in _parse_keys(older, file):
                raise ConfigError(
                    f"key file {file}: key id {key_id} is there already; choose another"
                )
            line = f"{key_id} {secrets.token_hex(_NEW_KEY_BYTES)}\n"
            _replace_text(target, line + older)
    except PermissionError as error:
        raise ConfigError(
            f"key file {file}: cannot be written ({error.strerror}); be its owner, or root"
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        problem = getattr(error, "strerror", None) or error
        raise ConfigError(f"key file {file}: cannot be written ({problem})") from None


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder, not the file, which is replaced; the lock ends with the process."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems lock no folders
            if error.errno not in {errno.EBADF, errno.ENOLCK, errno.ENOTSUP}:
                raise
        yield
    finally:
        os.close(descriptor)


def _replace_text(file: Path, text: str) -> None:
    """Text -> file in one step, on disk, with the owner and mode that the file had."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of a process that was killed
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists():
            status, own = file.stat(), temporary.stat()
            if (status.st_uid, status.st_gid) != (own.st_uid, own.st_gid):
                os.chown(temporary, status.st_uid, status.st_gid)
            shutil.copystat(file, temporary)  # mode and access lists
            os.utime(temporary)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _digest(reward: SignedReward, key: bytes) -> str:
    """HMAC over a JSON list, whose strings and lengths cannot run into each other."""
    fields = [
        _FORMAT,
        reward.trajectory_id,
        reward.task_id,
        reward.reward_id,
        reward.name,
        float(reward.value).hex(),
        reward.scope,
        reward.step,
        reward.kind,
        reward.source,
        reward.signed_ns,
        reward.verifier_digest,
    ]
    message = json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode()
    return hmac.new(key, message, sha256).hexdigest()
