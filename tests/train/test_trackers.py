"""Trackers get what metrics.jsonl gets, once, and can never stop a run."""

import importlib.util
import os
import signal
import sqlite3
import struct
from pathlib import Path

import pytest

from starpo_train.errors import ConfigError
from starpo_train.metrics import MetricsWriter, read_metrics
from starpo_train.run import train
from starpo_train.run_folder import read_resumed_config
from starpo_train.trackers import BackgroundTracker, TrackedMetrics, name_scalar, require_trackers


def steps_of(path):
    return [record for record in read_metrics(path) if "loss" in record]


def read_tensorboard(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name_scalar(name))]


def killed_after(step):
    """Progress callback that ends the run there, without its last checkpoint."""

    def die(record):
        if record.get("step") == step and "loss" in record:
            raise RuntimeError("killed")

    return die


def run_killed_and_resumed(configure, tracker):
    """Six steps, a checkpoint every two, killed after the third."""
    sections = {"train": {"epochs": 3, "checkpoint_every_steps": 2}}
    config = configure(run={"trackers": [tracker]}, **sections)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, progress=killed_after(3))
    train(read_resumed_config(config.run.output), resume=True)
    return config.run.output


@pytest.mark.slow
def test_tensorboard_holds_each_step_once_after_a_resume(configure):
    """TensorBoard's own reader sees the six steps of metrics.jsonl, with its numbers."""
    run = run_killed_and_resumed(configure, "tensorboard")
    truth = steps_of(run / "metrics.jsonl")
    assert [record["step"] for record in truth] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "grad_norm", "approx_kl", "learning_rate"):
        points = read_tensorboard(run / "tensorboard", name)
        assert [step for step, _ in points] == [1, 2, 3, 4, 5, 6]
        assert [value for _, value in points] == pytest.approx([r[name] for r in truth], rel=1e-6)
    assert not [
        r for r in read_metrics(run / "metrics.jsonl") if r.get("event") == "tracker_failed"
    ]


def test_tensorboard_gets_what_a_kill_kept_from_it(tmp_path, configure):
    """Its files are lost; the resumed run sends every step of metrics.jsonl again."""
    import shutil

    config = configure(run={"trackers": ["tensorboard"]}, train={"epochs": 3})
    stop = lambda r: r.get("step") == 4 and "loss" in r and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    part = train(config, progress=stop)
    shutil.rmtree(config.run.output / "tensorboard")
    train(read_resumed_config(part.metrics_path.parent), resume=True)
    points = read_tensorboard(config.run.output / "tensorboard", "loss")
    assert [step for step, _ in points] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_tensorboard_shows_what_tells_how_a_run_goes(configure):
    """Loss, spread of rewards, entropy, KL, ESS and speed, in groups, every number of each step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure(run={"trackers": ["tensorboard"]})
    train(config)
    events = EventAccumulator(str(config.run.output / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    told = {tag: [each.value for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    expected = {
        "train/loss": "loss",
        "train/grad_norm": "grad_norm",
        "train/learning_rate": "learning_rate",
        "reward/in_group_reward_std": "in_group_reward_std",
        "reward/advantage_mean_abs": "advantage_mean_abs",
        "policy/entropy": "entropy",
        "policy/approx_kl": "approx_kl",
        "policy/ess_fraction": "ess_fraction",
        "policy/clip_fraction": "clip_fraction",
        "speed/tokens_per_s": "tokens_per_s",
    }
    truth = steps_of(config.run.output / "metrics.jsonl")
    for tag, name in expected.items():
        assert told[tag] == pytest.approx([record[name] for record in truth], rel=1e-6), tag
    numbers = {k for r in truth for k, v in r.items() if isinstance(v, int | float)}
    assert {tag.partition("/")[2] for tag in told} == numbers - {"step"}


class Broken:
    """A tracker whose disk is full from the second step on."""

    held_steps: set[int] = set()  # noqa: RUF012

    def __init__(self):
        self.calls = []

    def log(self, numbers, *, step):
        self.calls.append(step)
        if step == 2:
            raise OSError(28, "No space left on device")

    def close(self):
        raise AssertionError("closed after it failed")


def test_a_failing_tracker_is_reported_once_and_left_alone(tmp_path):
    """Every record is in metrics.jsonl; one more says which tracker failed and how."""
    broken, seen = Broken(), []
    tracker = BackgroundTracker("broken", lambda: broken)
    metrics = TrackedMetrics(
        MetricsWriter(tmp_path / "metrics.jsonl"), [tracker], progress=seen.append
    )
    for step in range(1, 6):
        metrics.write({"step": step, "loss": 0.5})
    metrics.close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    failure = {
        "event": "tracker_failed",
        "tracker": "broken",
        "error": "OSError: [Errno 28] No space left on device",
    }
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5]
    assert [record for record in records if "event" in record] == [failure]
    assert seen == [failure]
    assert broken.calls == [1, 2]


@pytest.mark.slow
def test_a_tracker_that_cannot_begin_does_not_stop_the_run(configure):
    """TensorBoard's folder is a file: the run ends as without it, and says so."""
    config = configure(run={"trackers": ["tensorboard"]})

    def spoil(record):
        seen.append(record)

    seen = []
    plain = train(configure("plain"))
    original = Path.mkdir

    def claim_and_spoil(self, *args, **options):
        original(self, *args, **options)
        if self == config.run.output:
            (self / "tensorboard").write_text("in the way")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", claim_and_spoil)
        result = train(config, progress=spoil)
    weights = [(r.final_path / "model.safetensors").read_bytes() for r in (plain, result)]
    assert weights[0] == weights[1]
    assert [r["tracker"] for r in seen if r.get("event") == "tracker_failed"] == ["tensorboard"]


def test_a_tracker_that_hangs_is_left_behind(tmp_path):
    """The end of the run does not wait for it for ever."""
    import threading

    forever = threading.Event()
    tracker = BackgroundTracker("slow", lambda: forever.wait() and Broken())
    tracker.close(timeout_s=0.01)
    assert tracker.take_failure() == "did not take everything within 0.01 s"
    assert tracker.take_failure() is None
    forever.set()


def test_unknown_and_absent_trackers_are_refused_by_name():
    """Before anything is loaded, with what to install."""
    with pytest.raises(
        ConfigError, match="'board' is none; known here: tensorboard, wandb, mlflow"
    ):
        require_trackers(["board"])
    absent = [n for n in ("wandb", "mlflow") if importlib.util.find_spec(n) is None]
    for name in absent:
        with pytest.raises(ConfigError, match=f"'{name}' is not installed; `pip install {name}`"):
            require_trackers([name])


@pytest.mark.slow
def test_mlflow_holds_each_step_once_after_a_resume(configure, tmp_path, monkeypatch):
    """Its SQLite store, read with SQL."""
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = run_killed_and_resumed(configure, "mlflow")
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        rows = store.execute(
            "select step, value from metrics where key = 'train/loss' order by step"
        ).fetchall()
        (lora,) = store.execute("select value from params where key = 'model.lora_rank'").fetchone()
    assert rows == [(r["step"], pytest.approx(r["loss"])) for r in steps_of(run / "metrics.jsonl")]
    assert lora == "0"


@pytest.mark.slow
def test_wandb_offline_holds_one_run_with_each_step_once(configure, monkeypatch):
    """Both lives of the run carry one id; within their files no step is twice."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = run_killed_and_resumed(configure, "wandb")
    assert not [
        r for r in read_metrics(run / "metrics.jsonl") if r.get("event") == "tracker_failed"
    ]
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.stem for file in files}) == 1
    steps = [step for file in files for step in read_wandb_steps(file)]
    assert steps == [1, 2, 3, 3, 4, 5, 6]  # the server keeps the first 3; the second is equal


def read_wandb_steps(file):
    """Its file is a log as LevelDB's: blocks of 32 KiB, records of crc (4), length (2), part (1)."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts, steps = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no room for a header: padding
            at += 32768 - at % 32768
            continue
        length, part = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            if record.WhichOneof("record_type") == "history":
                steps.append(record.history.step.num)
    return steps
