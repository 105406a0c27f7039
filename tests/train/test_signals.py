"""SIGINT and SIGTERM at every stage of a run."""

import hashlib
import os
import signal
import time

import pytest

from starpo_train import run_folder
from starpo_train.checkpoint import list_checkpoints
from starpo_train.cli import main
from starpo_train.credit import values
from starpo_train.run import train
from starpo_train.run_folder import read_resumed_config


def hash_weights(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python runs handlers between two instructions


def signal_in(monkeypatch, module, name, *numbers):
    """Send signals when a function is called, then do what it does."""
    original = getattr(module, name)
    left = list(numbers)

    def signalled(*arguments, **options):
        while left:
            send(left.pop())
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, signalled)


SECTIONS = {"train": {"epochs": 3, "checkpoint_every_steps": 2, "keep_checkpoints": 0}}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_a_checkpoint_is_written_it_is_finished(configure, monkeypatch, number, capfd):
    """Step 2's checkpoint is whole, the run stops there, and goes on to the same weights."""
    whole = train(configure("whole", **SECTIONS))
    signal_in(monkeypatch, run_folder, "save_model_folder", number)
    part = train(configure("part", **SECTIONS))
    assert "stopping after this step; once more to stop at once" in capfd.readouterr().err
    assert (part.interrupted, part.num_steps, part.final_path.name) == (True, 2, "step_000002")
    resumed = train(read_resumed_config(part.metrics_path.parent), resume=True)
    assert hash_weights(resumed.final_path) == hash_weights(whole.final_path)


def test_a_second_one_while_a_checkpoint_is_written_leaves_it_torn(
    configure, hand, monkeypatch, tmp_path, capsys
):
    """Exit code 130 at once; what was being written does not count, and the run goes on."""
    whole = train(configure("whole", **SECTIONS))
    config = configure("part", **SECTIONS)
    with monkeypatch.context() as patch:
        signal_in(patch, run_folder, "save_model_folder", signal.SIGINT, signal.SIGINT)
        assert main(["run", str(tmp_path / "part.toml")]) == 130
    assert f"starpo-train resume {config.run.output}" in capsys.readouterr().err
    assert list_checkpoints(config.run.output / "checkpoints") == []
    assert (config.run.output / "checkpoints" / "step_000002").is_dir()
    resumed = train(read_resumed_config(config.run.output), resume=True)
    assert hash_weights(resumed.final_path) == hash_weights(whole.final_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_data_is_prepared_or_the_critic_fitted_it_stops_at_once(
    configure, monkeypatch, number, tmp_path, capsys
):
    """Exit code 130, no folder, and a line that says so."""
    configure(algorithm={"advantage": "bilevel_gae"})
    signal_in(monkeypatch, values, "fit_turn_values", number)
    assert main(["run", str(tmp_path / "run.toml")]) == 130
    assert "interrupted before the first step; nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_while_a_resumed_run_is_prepared_its_checkpoint_stays(configure, monkeypatch, capsys):
    """The next resume does what this one would have done."""
    from starpo_train import run

    whole = train(configure("whole", **SECTIONS))

    def stop(record):
        if record.get("step") == 2 and "loss" in record:
            send(signal.SIGTERM)

    part = train(configure("part", **SECTIONS), progress=stop)
    folder = part.metrics_path.parent
    with monkeypatch.context() as patch:
        signal_in(patch, run, "prepare_training_data", signal.SIGTERM)
        assert main(["resume", str(folder)]) == 130
    assert f"go on from the last checkpoint with: starpo-train resume {folder}" in (
        capsys.readouterr().err
    )
    resumed = train(read_resumed_config(folder), resume=True)
    assert hash_weights(resumed.final_path) == hash_weights(whole.final_path)
