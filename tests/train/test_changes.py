"""A run whose configuration was edited between its checkpoint and `resume`."""

import json
import signal

import pytest

from starpo_train.changes import MAY_CHANGE
from starpo_train.cli import main
from starpo_train.config import RunConfig
from starpo_train.errors import ConfigError
from starpo_train.metrics import read_metrics
from starpo_train.run import train
from starpo_train.run_folder import read_final_path, read_resumed_config


class StopAt:
    """Progress callback that asks the run to stop after a step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, record):
        if record.get("step") == self.step and "loss" in record:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def part(configure):
    """A run of three epochs of two steps, stopped after two."""

    def make(name="part", **sections):
        sections.setdefault("train", {"epochs": 3})
        return train(configure(name, **sections), progress=StopAt(2)).metrics_path.parent

    return make


def edit(run, before, after):
    """Replace a part of the run's saved configuration, which must be there."""
    file = run / "run.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_a_run_left_alone_has_no_changes(part):
    """No `changed` in its record."""
    run = part()
    train(read_resumed_config(run), resume=True)
    resumed = next(r for r in read_metrics(run / "metrics.jsonl") if r.get("event") == "resume")
    assert "changed" not in resumed


def test_what_may_change_is_told_and_recorded(part, capsys):
    """Old and new, in the terminal and in the record; the run takes the new number of steps."""
    run = part()
    edit(run, "epochs = 3", "epochs = 4")
    edit(run, "keep_checkpoints = 2", "keep_checkpoints = 0")
    edit(run, "[data]", 'name = "shop"\n\n[data]')
    capsys.readouterr()
    assert main(["resume", str(run)]) == 0
    printed = capsys.readouterr().out
    assert (
        'edited since then: run.name absent -> "shop", train.epochs 3 -> 4, '
        "train.keep_checkpoints 2 -> 0; from here on the learning rate is that of the new length"
    ) in printed
    records = read_metrics(run / "metrics.jsonl")
    resumed = next(record for record in records if record.get("event") == "resume")
    assert resumed["changed"] == {
        "run.name": [None, "shop"],
        "train.epochs": [3, 4],
        "train.keep_checkpoints": [2, 0],
    }
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 9))


REFUSED = [
    ("seed = 0", "seed = 1", "run.seed 0 -> 1"),
    ('split = "train"', 'split = "test"', 'data.split "train" -> "test"'),
    ("lora_rank = 0", "lora_rank = 2", "model.lora_rank 0 -> 2"),
    ("clip_low = 0.2", "clip_low = 0.1", "algorithm.clip_low 0.2 -> 0.1"),
    ("lambda = 1.0", "lambda = 0.5", "algorithm.lambda 1.0 -> 0.5"),
    ('order = "tasks"', 'order = "shuffled"', 'train.order "tasks" -> "shuffled"'),
    ("trajectories_per_step = 4", "trajectories_per_step = 8", "per_step 4 -> 8"),
    ("learning_rate = 0.01", "learning_rate = 0.02", "train.learning_rate 0.01 -> 0.02"),
]


def test_what_would_be_another_run_is_refused(part, capsys):
    """One line with both values and the way out; the run's folder stays as it was."""
    run = part()
    edit(run, "epochs = 3", "epochs = 4")
    config, metrics = (run / "run.toml").read_text(), (run / "metrics.jsonl").read_text()
    for before, after, named in REFUSED:
        edit(run, before, after)
        assert main(["resume", str(run)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {run}/run.toml was edited since step_000002: ")
        assert named in error
        assert "train.epochs" not in error
        assert f"model.path = '{run}/checkpoints/step_000002' there begins with the" in error
        assert error.count("\n") == 1
        (run / "run.toml").write_text(config)
    assert (run / "metrics.jsonl").read_text() == metrics


def test_every_change_that_is_refused_is_named(part):
    """Two at once."""
    run = part()
    edit(run, "seed = 0", "seed = 3")
    edit(run, "gamma_turn = 0.95", "gamma_turn = 0.9")
    with pytest.raises(ConfigError, match=r"run\.seed 0 -> 3, algorithm\.gamma_turn 0\.95 -> 0\.9"):
        train(read_resumed_config(run), resume=True)


def test_another_model_is_refused_and_a_moved_one_goes_on(part, hand, tmp_path):
    """A link at the old place is enough; the same folder elsewhere is not known to be the same."""
    base = hand.model(tmp_path / "base")
    run = part(model={"path": str(base)})
    base.rename(tmp_path / "moved")
    edit(run, f'path = "{base}"', f'path = "{tmp_path / "moved"}"')
    with pytest.raises(ConfigError, match=r"model\.path .* put a link to it where it was"):
        train(read_resumed_config(run), resume=True)
    base.symlink_to(tmp_path / "moved")
    assert train(read_resumed_config(run), resume=True).num_steps == 6


def test_a_moved_dataset_is_the_same_one(part, hand, model_folder, tmp_path):
    """Its digest tells; the new place is recorded, and what is done after it knows it."""
    dataset = hand.bandit(tmp_path / "data", model_folder)
    run = part(data={"dataset": str(dataset)})
    dataset.rename(tmp_path / "elsewhere")
    edit(run, f'dataset = "{dataset}"', f'dataset = "{tmp_path / "elsewhere"}"')
    assert train(read_resumed_config(run), resume=True).num_steps == 6
    resumed = next(r for r in read_metrics(run / "metrics.jsonl") if r.get("event") == "resume")
    assert resumed["changed"] == {"data.dataset": [str(dataset), str(tmp_path / "elsewhere")]}


def test_a_pinned_version_of_the_dataset_is_no_change(part, hand, model_folder, tmp_path):
    """Resumed twice on the version that it began with: the checkpoint names it, the file does not."""
    dataset = hand.bandit(tmp_path / "data", model_folder)
    manifest = dataset / "manifest.json"
    (dataset / "versions").mkdir()
    (dataset / "versions" / "made-by-hand.json").write_text(manifest.read_text())
    run = part(data={"dataset": str(dataset)}, train={"epochs": 3, "checkpoint_every_steps": 1})
    manifest.write_text(manifest.read_text().replace("made-by-hand", "another"))
    stopped = train(read_resumed_config(run), resume=True, progress=StopAt(4))
    assert stopped.interrupted
    assert train(read_resumed_config(run), resume=True).num_steps == 6
    events = [r for r in read_metrics(run / "metrics.jsonl") if r.get("event") == "resume"]
    assert [event.get("changed") for event in events] == [None, None]


def test_keys_of_a_later_release_count_as_their_defaults(part):
    """A checkpoint that does not know a key goes on unless the key was set."""
    run = part()
    checkpoint = run / "checkpoints" / "step_000002"
    forget_key(checkpoint, "train", "beta2")
    edit(run, "beta2 = 0.999", "beta2 = 0.9")
    with pytest.raises(ConfigError, match=r"train\.beta2 0\.999 -> 0\.9"):
        train(read_resumed_config(run), resume=True)
    edit(run, "beta2 = 0.9", "beta2 = 0.999")
    assert train(read_resumed_config(run), resume=True).num_steps == 6


def forget_key(checkpoint, section, key):
    """Commit a checkpoint anew whose configuration lacks a key."""
    from starpo_train.modelfolder import render_commit

    commit = json.loads((checkpoint / "COMMIT").read_text())
    del commit["lineage"]["config"][section][key], commit["sha256"], commit["format"]
    (checkpoint / "COMMIT").write_text(render_commit(commit))


def test_a_finished_run_is_extended_and_cut(configure):
    """More epochs go on, and until they are done the run has no end; fewer end it where it is."""
    result = train(configure())
    run = result.metrics_path.parent
    edit(run, "epochs = 1", "epochs = 3")
    assert train(read_resumed_config(run), resume=True, progress=StopAt(4)).interrupted
    assert not (run / "final.json").exists()
    edit(run, "epochs = 3", "epochs = 2")
    cut = train(read_resumed_config(run), resume=True)
    assert (cut.num_steps, cut.already_finished) == (4, True)
    assert read_final_path(run) == run / "checkpoints" / "step_000004"
    changes = [r["changed"] for r in read_metrics(run / "metrics.jsonl") if "changed" in r]
    assert changes == [{"train.epochs": [1, 3]}, {"train.epochs": [3, 2]}]


def test_a_larger_pack_budget_is_tried_anew(part):
    """What an earlier life found to fit holds only for the budget that it had."""
    run = part()
    checkpoint = run / "checkpoints" / "step_000002"
    state = checkpoint / "trainer" / "state.json"
    values = json.loads(state.read_text())
    state.write_text(json.dumps(values | {"tokens_per_pack": 16}))
    reseal(checkpoint, "trainer/state.json")
    assert open_budget(run) == 16
    edit(run, "tokens_per_pack = 8192", "tokens_per_pack = 4096")
    assert open_budget(run) == 4096


def reseal(checkpoint, name):
    """Commit a checkpoint anew after one of its files was changed on purpose."""
    from starpo_train.modelfolder import hash_file, render_commit

    commit = json.loads((checkpoint / "COMMIT").read_text())
    file = checkpoint / name
    commit["files"][name] = {"sha256": hash_file(file), "bytes": file.stat().st_size}
    del commit["sha256"], commit["format"]
    (checkpoint / "COMMIT").write_text(render_commit(commit))


def open_budget(run):
    from starpo_train.run import open_trainer

    trainer = open_trainer(read_resumed_config(run), resume=True, progress=None)
    trainer._metrics.close()
    return trainer._budget.tokens_per_pack


def test_every_key_that_may_change_exists_and_is_documented():
    """In the table of docs/training.md, all of them and no others."""
    from dataclasses import fields
    from pathlib import Path
    from typing import get_type_hints

    hints = get_type_hints(RunConfig)
    known = {f"{name}.{option.name}" for name, kind in hints.items() for option in fields(kind)}
    assert known >= MAY_CHANGE
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    lines = text.partition("## An edited run.toml")[2].partition("\n## ")[0].splitlines()
    cells = [line.split("|")[1] for line in lines if line.startswith("| `")]
    named = {key for cell in cells for key in cell.split("`")[1::2]}
    assert named == MAY_CHANGE
