"""Rewards + keys -> signatures."""

import dataclasses
import hmac
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
