"""Runs that were interrupted, killed or damaged."""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from starpo_train.cli import main
from starpo_train.errors import (
    CheckpointError,
    ConfigError,
    DataError,
)
from starpo_train.metrics import read_metrics
from starpo_train.run import train
from starpo_train.run_folder import read_resumed_config


def steps_of(result):
    return [record for record in read_metrics(result.metrics_path) if "loss" in record]


def hash_weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


class InterruptAt:
    """Progress callback that sends this process a signal after a step."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def __call__(self, record):
        if record.get("step") == self.step and "loss" in record:
            os.kill(os.getpid(), self.number)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": {"name": "starpo"}},
        {"algorithm": {"name": "starpo", "advantage": "bilevel_gae"}},
        {"model": {"lora_rank": 2}},
    ],
    ids=["grpo", "bilevel_gae", "lora"],
)
def test_interrupted_run_resumes_bit_for_bit(configure, changes):
    """Stopped in the middle of an epoch and resumed: the weights of the uninterrupted run."""
    sections = {"train": {"epochs": 3, "trajectories_per_step": 3}, **changes}
    whole = train(configure("whole", **sections))
    part = train(configure("part", **sections), progress=InterruptAt(4))
    assert (part.interrupted, part.num_steps) == (True, 4)
    resumed = train(read_resumed_config(part.metrics_path.parent), resume=True)
    assert (resumed.interrupted, resumed.num_steps) == (False, 9)
    assert hash_weights(resumed.final_path) == hash_weights(whole.final_path)
    keys = ("step", "epoch", "loss", "grad_norm", "learning_rate")
    assert [[record[key] for key in keys] for record in steps_of(resumed)] == [
        [record[key] for key in keys] for record in steps_of(whole)
    ]


def test_killed_run_goes_on_from_its_last_checkpoint(configure):
    """Steps after the checkpoint are taken again, and appear once in the metrics."""
    sections = {"train": {"epochs": 3, "checkpoint_every_steps": 2, "keep_checkpoints": 0}}
    whole = train(configure("whole", **sections))

    def die(record):
        if record.get("step") == 3 and "loss" in record:
            raise RuntimeError("killed")

    config = configure("part", **sections)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, progress=die)
    resumed = train(read_resumed_config(config.run.output), resume=True)
    assert hash_weights(resumed.final_path) == hash_weights(whole.final_path)
    assert [record["step"] for record in steps_of(resumed)] == [1, 2, 3, 4, 5, 6]


def test_run_killed_before_its_first_checkpoint_starts_over(configure):
    """There is nothing to go on from, so resuming does the whole run."""
    whole = train(configure("whole"))
    config = configure("part")

    def die(record):
        if "loss" in record:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config, progress=die)
    resumed = train(read_resumed_config(config.run.output), resume=True)
    assert hash_weights(resumed.final_path) == hash_weights(whole.final_path)


def test_resuming_from_a_tampered_checkpoint_is_refused(configure):
    """One flipped byte in the optimizer state stops the resume."""
    part = train(configure(train={"epochs": 3}), progress=InterruptAt(2, signal.SIGINT))
    file = part.final_path / "trainer" / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"state\.safetensors does not match"):
        train(read_resumed_config(part.metrics_path.parent), resume=True)


def damage(checkpoint):
    """Flip a bit of a checkpoint's weights."""
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_damaged_checkpoint_names_the_newest_whole_one(configure, capsys):
    """Of four, the last two are damaged; removing them as told ends in the weights of a whole run."""
    sections = {"train": {"epochs": 3, "checkpoint_every_steps": 1, "keep_checkpoints": 0}}
    whole = train(configure("whole", **sections))
    part = train(configure("part part", **sections), progress=InterruptAt(4))
    run = part.metrics_path.parent
    damaged = [run / "checkpoints" / f"step_{step:06d}" for step in (3, 4)]
    for checkpoint in damaged:
        damage(checkpoint)
    capsys.readouterr()
    assert main(["resume", str(run)]) == 2
    assert capsys.readouterr().err == (
        f"error: {damaged[1]}/model.safetensors does not match its SHA-256; the newest whole one "
        f"before it is step_000002: `rm -r '{damaged[0]}' '{damaged[1]}'`, then "
        f"`starpo-train resume '{run}'` goes on from there.\n"
    )
    for checkpoint in damaged:
        shutil.rmtree(checkpoint)
    resumed = train(read_resumed_config(run), resume=True)
    assert hash_weights(resumed.final_path) == hash_weights(whole.final_path)


def test_a_damaged_checkpoint_with_none_before_it_says_so(configure):
    """Its COMMIT is cut short, and it is the only one."""
    part = train(configure(train={"epochs": 3}), progress=InterruptAt(2))
    commit = part.final_path / "COMMIT"
    commit.write_text(commit.read_text()[:-9])
    with pytest.raises(CheckpointError, match=r"damaged .*; no checkpoint before it is whole"):
        train(read_resumed_config(part.metrics_path.parent), resume=True)


def test_a_copy_kept_among_the_checkpoints_is_none(configure):
    """It is neither gone on from nor removed when old checkpoints are."""
    sections = {"train": {"epochs": 3, "checkpoint_every_steps": 1, "keep_checkpoints": 1}}
    part = train(configure(**sections), progress=InterruptAt(2))
    run = part.metrics_path.parent
    kept = shutil.copytree(part.final_path, part.final_path.with_name("step_000002_best"))
    resumed = train(read_resumed_config(run), resume=True)
    assert (resumed.num_steps, resumed.final_path.name) == (6, "step_000006")
    assert sorted((run / "checkpoints").iterdir()) == [kept, resumed.final_path]


def test_resuming_on_another_dataset_is_refused(configure, hand, model_folder, tmp_path):
    """The dataset's digest is part of the run."""
    dataset = hand.bandit(tmp_path / "data", model_folder)
    part = train(configure(dataset=dataset, train={"epochs": 3}), progress=InterruptAt(2))
    manifest = dataset / "manifest.json"
    manifest.write_text(manifest.read_text().replace("made-by-hand", "another"))
    with pytest.raises(DataError, match="the dataset has changed"):
        train(read_resumed_config(part.metrics_path.parent), resume=True)


def test_a_run_goes_on_with_the_version_it_began_with(configure, hand, model_folder, tmp_path):
    """The dataset got a new version meanwhile; a void one stops the run and says why."""
    dataset = hand.bandit(tmp_path / "data", model_folder)
    manifest = dataset / "manifest.json"
    versions = dataset / "versions"
    versions.mkdir()
    (versions / "made-by-hand.json").write_text(manifest.read_text())
    part = train(configure(dataset=dataset, train={"epochs": 3}), progress=InterruptAt(2))
    manifest.write_text(manifest.read_text().replace("made-by-hand", "another"))
    run = part.metrics_path.parent
    assert train(read_resumed_config(run), resume=True).final_path.is_dir()
    other = configure("other", dataset=dataset, train={"epochs": 3})
    again = train(other, progress=InterruptAt(2))
    void = {"schema_version": "3", "void": "what it held was deleted on request"}
    (versions / "another.json").write_text(json.dumps(void))
    manifest.write_text(manifest.read_text().replace("another", "third"))
    with pytest.raises(DataError, match="is void: what it held was deleted on request"):
        train(read_resumed_config(again.metrics_path.parent), resume=True)


def test_old_checkpoints_are_removed(configure):
    """Of four checkpoints the two newest stay."""
    result = train(configure(train={"epochs": 2, "checkpoint_every_steps": 1}))
    names = sorted(path.name for path in result.final_path.parent.iterdir())
    assert names == ["step_000003", "step_000004"]


def test_resuming_a_finished_run_does_nothing(configure, capsys):
    """Where its checkpoint is, no step, no loss; a run without a checkpoint starts over."""
    result = train(configure())
    before = result.metrics_path.read_text()
    run = result.metrics_path.parent
    assert main(["resume", str(run)]) == 0
    output = capsys.readouterr().out
    assert f"already finished: {result.final_path}" in output
    assert "nan" not in output
    assert result.metrics_path.read_text() == before
    shutil.rmtree(run / "checkpoints")
    assert main(["resume", str(run)]) == 0
    line = f"no committed checkpoint in {run}/checkpoints; starting from the beginning"
    assert line in capsys.readouterr().out


def test_a_run_that_is_being_trained_is_not_resumed(configure, capsys):
    """From within its second step: refused, and the run ends as one left alone."""
    whole = train(configure("whole", train={"epochs": 2, "checkpoint_every_steps": 1}))
    config = configure("part", train={"epochs": 2, "checkpoint_every_steps": 1})
    codes = []

    def resume_too(record):
        if record.get("step") == 2 and "loss" in record:
            codes.append(main(["resume", str(config.run.output)]))

    part = train(config, progress=resume_too)
    assert codes == [2]
    assert f"error: {config.run.output}: another process is training" in capsys.readouterr().err
    assert [record["step"] for record in steps_of(part)] == [1, 2, 3, 4]
    assert hash_weights(part.final_path) == hash_weights(whole.final_path)
    assert train(read_resumed_config(config.run.output), resume=True).already_finished


def test_a_folder_with_other_content_is_not_taken(configure, tmp_path):
    """It stays as it was."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something else than a run"):
        train(configure())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_run_in_another_run_or_checkpoint_is_refused(configure):
    """The checkpoint would no longer match its COMMIT."""
    result = train(configure())
    inside = result.final_path.relative_to(result.metrics_path.parents[1])
    for output in (inside / "new", "run/new"):
        with pytest.raises(ConfigError, match="choose a folder outside of it"):
            train(configure("other", run={"output": str(output)}))
    assert train(read_resumed_config(result.metrics_path.parent), resume=True).already_finished


def test_a_second_run_does_not_take_over_a_folder(configure):
    """The same output twice is an error that names `resume`."""
    config = configure()
    train(config)
    with pytest.raises(ConfigError, match="already holds a run; `starpo-train resume"):
        train(config)
