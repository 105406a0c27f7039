"""Rewards + keys -> signatures."""

import dataclasses
import hmac
import os
import subprocess
import sys
from hashlib import sha256

import pytest

from starpo_trace.errors import ConfigError
from starpo_trace.signing import (
    Keyring,
    SignedReward,
    find_keyring,
    find_signature_fault,
    parse_key,
    read_key_id,
    read_keyring,
    sign_reward,
    write_new_key,
)

REWARD = SignedReward(
    trajectory_id="t1",
    task_id="order 7",
    reward_id="r1",
    name="reward",
    value=0.1,
    scope="trajectory",
    step=None,
    kind="outcome",
    source="rule",
    signed_ns=1234,
    verifier_digest="sha256:ab",
)
KEYS = Keyring(keys={"k2": bytes(range(32)), "k1": bytes(16)})


def test_a_signature_is_the_hmac_of_a_json_list():
    """Worked by hand, so that a verifier in another language can do the same."""
    message = (
        b'["v1","t1","order 7","r1","reward","0x1.999999999999ap-4","trajectory",null,'
        b'"outcome","rule",1234,"sha256:ab"]'
    )
    expected = hmac.new(bytes(range(32)), message, sha256).hexdigest()
    assert sign_reward(REWARD, KEYS) == f"v1:k2:{expected}"
    assert read_key_id(f"v1:k2:{expected}") == "k2"
    assert find_signature_fault(REWARD, f"v1:k2:{expected}", KEYS) is None


@pytest.mark.parametrize(
    "change",
    [
        {"trajectory_id": "t2"},
        {"task_id": None},
        {"task_id": "order 8"},
        {"reward_id": "r2"},
        {"name": "cost"},
        {"value": 0.1000000000000001},
        {"scope": "turn"},
        {"step": 0},
        {"kind": "process"},
        {"source": "user"},
        {"signed_ns": 1235},
        {"verifier_digest": None},
    ],
)
def test_every_field_is_covered(change):
    """A signature is that of one reward; there are as many changes here as fields."""
    signature = sign_reward(REWARD, KEYS)
    changed = dataclasses.replace(REWARD, **change)
    assert find_signature_fault(changed, signature, KEYS) == "key k2 did not sign this reward"
    assert len(dataclasses.fields(SignedReward)) == 11


def test_fields_do_not_run_into_each_other():
    """Quotes and commas in one field are not taken for the next."""
    first = dataclasses.replace(REWARD, name='a","b', reward_id="r")
    second = dataclasses.replace(REWARD, name="b", reward_id='r","a')
    assert sign_reward(first, KEYS) != sign_reward(second, KEYS)


def test_old_keys_verify_and_removed_ones_do_not():
    """Rotation: a new key signs, the old one verifies until it is taken out of the file."""
    old = Keyring(keys={"k1": KEYS.keys["k1"]})
    signature = sign_reward(REWARD, old)
    assert find_signature_fault(REWARD, signature, KEYS) is None
    new = Keyring(keys={"k2": KEYS.keys["k2"]})
    assert find_signature_fault(REWARD, signature, new) == "key k1 is not among the keys"


@pytest.mark.parametrize("signature", ["", "v2:k2:" + "0" * 64, "v1:k2:xyz", "v1::" + "0" * 64])
def test_what_is_no_signature_is_said(signature):
    """A wrong form is no match of any key."""
    fault = find_signature_fault(REWARD, signature, KEYS)
    assert fault == "the signature is not of the form v1:<key id>:<hex>"
    assert read_key_id(signature) is None


def test_key_bytes_are_in_no_text():
    """Neither a keyring's repr nor an error shows a key."""
    assert repr(KEYS) == "Keyring(is_exposed=False)"
    key = "ab" * 16
    for line in (f"k1:{key[:8]}", f"k1:{key}g", key, f"{key} k1", f"{key}:", f"k1 {key} {key}x"):
        with pytest.raises(ConfigError, match=r"^here: ") as caught:
            parse_key(line, "here")
        assert key[:8] not in str(caught.value)


def test_a_key_file_is_made_and_grows_at_its_head(tmp_path):
    """Mode 0600; the newest key is the first, and signs."""
    path = tmp_path / "keys"
    write_new_key(path, "k1")
    write_new_key(path, "k2")
    keyring = read_keyring(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (keyring.key_ids, keyring.is_exposed) == (["k2", "k1"], False)
    assert {len(key) for key in keyring.keys.values()} == {32}
    with pytest.raises(ConfigError, match="k1 is there already"):
        write_new_key(path, "k1")
    path.chmod(0o640)
    assert read_keyring(path).is_exposed


def test_a_new_key_changes_nothing_else_about_the_file(tmp_path):
    """Mode, owner, group and symbolic link stay; a file made empty beforehand is filled."""
    path, link = tmp_path / "keys", tmp_path / "link"
    path.write_text("# verifiers\n")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    owner = (path.stat().st_uid, path.stat().st_gid)
    link.symlink_to("keys")
    write_new_key(link, "k1")
    write_new_key(path, "k2")
    status = path.stat()
    assert link.is_symlink()
    assert (status.st_mode & 0o777, (status.st_uid, status.st_gid)) == (0o640, owner)
    assert read_keyring(link).key_ids == ["k2", "k1"]
    assert path.read_text().endswith("# verifiers\n")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["keys", "link"]


def test_keys_made_at_once_are_all_there(tmp_path):
    """Four processes put theirs into one file."""
    code = (
        "import sys; from starpo_trace.signing import write_new_key\n"
        "sys.stdin.readline()\n"
        "for number in range(10): write_new_key(sys.argv[1], f'k{sys.argv[2]}-{number}')"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "keys", str(number)], stdin=subprocess.PIPE
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=180)
    assert [process.returncode for process in processes] == [0] * 4
    expected = {f"k{process}-{number}" for process in range(4) for number in range(10)}
    assert set(read_keyring(tmp_path / "keys").key_ids) == expected


def test_a_key_file_that_cannot_be_written_is_named(tmp_path):
    """A file where its folder should be, and a loop of links."""
    (tmp_path / "none").write_text("")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for path in (tmp_path / "none" / "keys", tmp_path / "a"):
        with pytest.raises(ConfigError, match=f"^key file {path}: cannot be written"):
            write_new_key(path, "k1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# only\n\n", "holds no key"),
        (f"k1 {'00' * 16}\nk 2 {'00' * 16}", "line 2: the key is not hexadecimal"),
        (f"\nk1 {'00' * 15}", "line 2: the key has 15 bytes"),
        (f"k1 {'00' * 16}\nk1 {'11' * 16}", "line 2: its key id is there twice"),
        ("a/b 00", "line 1: no `id hex`"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_bad_key_file_says_which_line(tmp_path, text, message):
    """What is wrong, where, and no key material."""
    path = tmp_path / "keys"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        read_keyring(path)


def test_the_environment_names_a_key_or_a_file(tmp_path):
    """The key itself wins over a file; without either there is none."""
    path = tmp_path / "keys"
    write_new_key(path, "k1")
    both = {"STARPO_REWARD_KEY": f"k7:{'ab' * 16}", "STARPO_REWARD_KEY_FILE": str(path)}
    found = find_keyring(both)
    assert found is not None
    assert dict(found.keys) == {"k7": bytes.fromhex("ab" * 16)}
    found = find_keyring({"STARPO_REWARD_KEY_FILE": str(path)})
    assert found is not None
    assert found.key_ids == ["k1"]
    assert find_keyring({}) is None
    with pytest.raises(ConfigError, match="missing: cannot be read"):
        find_keyring({"STARPO_REWARD_KEY_FILE": "missing"})


def test_a_new_key_files_folder_is_made(tmp_path):
    """As `/etc/starpo` on a fresh machine; nobody else may look into it."""
    path = tmp_path / "etc" / "starpo" / "reward.keys"
    write_new_key(path, "k1")
    assert read_keyring(path).key_ids == ["k1"]
    assert path.parent.stat().st_mode & 0o777 == 0o700
