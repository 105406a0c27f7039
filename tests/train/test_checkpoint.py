"""Checkpoints load only when they are whole."""

import json

import pytest
import torch
from safetensors import SafetensorError

from starpo_train.checkpoint import (
    COMMIT_FILE,
    list_checkpoints,
    read_checkpoint,
    read_commit,
    remove_checkpoint,
    write_checkpoint,
)
from starpo_train.errors import CheckpointError


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(
        tmp_path / "step_000003",
        save_model=lambda folder: (folder / "model.safetensors").write_bytes(b"weights"),
        tensors={"adamw.exp_avg.w": torch.arange(3.0)},
        values={"step": 3, "position": {"epoch": 1}},
        lineage={"starpo_version": "0", "dataset": {"digest": "d"}},
    )


def test_a_checkpoint_reads_back_what_was_written(checkpoint):
    """Tensors, values, step and lineage."""
    actual = read_checkpoint(checkpoint)
    assert actual.tensors["adamw.exp_avg.w"].tolist() == [0.0, 1.0, 2.0]
    assert actual.values == {"step": 3, "position": {"epoch": 1}}
    assert (actual.step, actual.lineage["dataset"]) == (3, {"digest": "d"})


def test_the_commit_lists_every_file_with_its_hash(checkpoint):
    """SHA-256 of b"weights" was computed with sha256sum."""
    files = read_commit(checkpoint)["files"]
    assert sorted(files) == ["model.safetensors", "trainer/state.json", "trainer/state.safetensors"]
    assert files["model.safetensors"] == {
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        "bytes": 7,
    }


def test_checkpoints_are_listed_by_their_step(tmp_path):
    """After 999,999 comes a longer number, which sorts before it as text."""
    for name in ("step_1000000", "step_000009", "step_999999", "step_000009_best", "step_9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / COMMIT_FILE).touch()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step_000009", "step_999999", "step_1000000"]


def test_torn_checkpoint_is_refused(checkpoint):
    """A folder without COMMIT is the rest of a killed run; it is not listed either."""
    (checkpoint / COMMIT_FILE).unlink()
    assert list_checkpoints(checkpoint.parent) == []
    with pytest.raises(CheckpointError, match="not a committed checkpoint"):
        read_checkpoint(checkpoint)


def test_torn_checkpoint_is_replaced_by_a_fresh_one(checkpoint):
    """Writing over an uncommitted folder leaves nothing of it."""
    (checkpoint / COMMIT_FILE).unlink()
    (checkpoint / "stale").touch()
    write_checkpoint(
        checkpoint, save_model=lambda folder: None, tensors={}, values={"step": 3}, lineage={}
    )
    assert sorted(read_commit(checkpoint)["files"]) == [
        "trainer/state.json",
        "trainer/state.safetensors",
    ]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda c: flip(c / "model.safetensors"), "model.safetensors does not match its SHA-256"),
        (lambda c: flip(c / "trainer/state.safetensors"), "does not match its SHA-256"),
        (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda c: (c / "adapter.pkl").touch(), "adapter.pkl was added after the commit"),
        (lambda c: (c / COMMIT_FILE).write_text("{"), "damaged"),
        (lambda c: (c / COMMIT_FILE).write_text(json.dumps({"files": 3})), "damaged"),
    ],
)
def test_tampered_checkpoint_is_refused(checkpoint, tamper, message):
    """Any changed, missing or added file stops the load and is named."""
    tamper(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(checkpoint)


def test_committed_checkpoints_are_never_overwritten(checkpoint):
    """Writing into a committed folder is an error and changes nothing."""
    with pytest.raises(CheckpointError, match="already committed"):
        write_checkpoint(
            checkpoint, save_model=lambda folder: None, tensors={}, values={"step": 3}, lineage={}
        )
    assert read_checkpoint(checkpoint).step == 3


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("28")])
def test_full_disk_leaves_only_the_earlier_checkpoint(checkpoint, error):
    """A checkpoint that cannot be written is one clear line; nothing of it stays."""

    def fail(folder):
        (folder / "model.safetensors").write_bytes(b"part")
        raise error

    folder = checkpoint.parent / "step_000004"
    with pytest.raises(CheckpointError, match=r"step_000004: .* step_000003 stays the newest") as e:
        write_checkpoint(folder, save_model=fail, tensors={}, values={"step": 4}, lineage={})
    assert "\n" not in str(e.value)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    assert read_checkpoint(checkpoint).step == 3


def test_removed_checkpoints_are_gone(checkpoint):
    """Removal takes the folder away."""
    remove_checkpoint(checkpoint)
    assert list(checkpoint.parent.iterdir()) == []


def test_each_byte_of_the_commit_counts(checkpoint):
    """Also those that leave it good JSON: a digit of the step, a letter of a key, a space."""
    file = checkpoint / COMMIT_FILE
    whole = file.read_bytes()
    for at in range(len(whole)):
        for bit in (1, 32):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            with pytest.raises(CheckpointError):
                read_commit(checkpoint)
    file.write_bytes(whole)
    assert read_commit(checkpoint)["step"] == 3
