"""Runs on several ranks: real processes under torchrun, gloo, against one process.

This file is also what torchrun starts: `torchrun test_ranks.py JOBS.json` does some jobs on every
rank and writes down what came of them.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from starpo_train.checkpoint import list_checkpoints, read_checkpoint
from starpo_train.config import ModelSection, read_run_config
from starpo_train.deal import count_longest, deal_units
from starpo_train.errors import CheckpointError, ConfigError, ModelError, StarpoTrainError
from starpo_train.losses.filtered_bc import compute_filtered_bc_loss
from starpo_train.metrics import read_metrics
from starpo_train.model import choose_device, load_policy
from starpo_train.pack import deal_rows, pack_all
from starpo_train.ranks import ALONE, Ranks, open_ranks, read_ranks
from starpo_train.run import open_trainer, train
from starpo_train.run_folder import read_final_path, read_resumed_config
from starpo_train.slices import SavedTensors, Slice, name_files, save_slices
from starpo_train.step import accumulate_gradients

# What every rank does


def measure_gradients(config, ranks=ALONE):
    """Gradients of the first step, whole, and what it says about itself."""
    trainer = open_trainer(config, resume=False, progress=None, ranks=ranks)
    trainer._refresh_proximal()
    step = trainer._build_step(trainer._plan_epoch(0)[0])
    objective, name_row = trainer.data.objective, trainer.data.name_row
    sums = accumulate_gradients(trainer.policy, step, objective, name_row).sums
    trainer._metrics.close()
    found = {}
    for name, parameter in trainer.policy.trained_parameters():
        gradient = parameter.grad
        whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        found[name] = whole.clone()
    found["sums"] = torch.tensor([sums[name] for name in sorted(sums)], dtype=torch.float64)
    if "critic.values_K" in trainer.data.kept:
        found["critic"] = trainer.data.kept["critic.values_K"]
    return found


class StopAt:
    """Sends one rank SIGTERM at a step, from rank 0, where progress is reported."""

    def __init__(self, step, pid):
        self.step, self.pid = step, pid

    def __call__(self, record):
        if record.get("step") == self.step and "loss" in record:
            os.kill(self.pid, signal.SIGTERM)


def do_job(job, ranks):
    kind, path = job["kind"], Path(job["path"])
    if kind == "gradients":
        found = measure_gradients(read_run_config(path), ranks)
        if ranks.is_first:
            save_file(found, job["found"])
    elif kind == "train":
        pids = ranks.gather(os.getpid())
        stop = StopAt(job["stop"], pids[-1]) if "stop" in job else None
        train(read_run_config(path), progress=stop)
    elif kind == "copy":
        if ranks.is_first:
            for target in job["to"]:
                shutil.copytree(path, target)
        ranks.gather(None)
    elif kind == "resume":
        train(read_resumed_config(path), resume=True)
    elif kind == "full_disk":  # of the last rank
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if ranks.rank == ranks.size - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            train(read_resumed_config(path), resume=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def do_jobs(file):
    """Every job in turn; an error ends a job on all ranks, and is written down by each."""
    jobs = json.loads(file.read_text())
    with open_ranks(device="cpu", timeout_s=120) as ranks:
        for i, job in enumerate(jobs):
            try:
                do_job(job, ranks)
                outcome = "done"
            except StarpoTrainError as error:
                outcome = f"{type(error).__name__}: {error}"
            file.with_name(f"outcome-{i}-{ranks.rank}").write_text(outcome)


# What pytest does


def launch(*arguments, num_ranks=2):
    """Torchrun with some ranks of gloo; the package is the one of these tests."""
    code = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks)]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def do_all(place, jobs, *, num_ranks):
    """Outcomes of each job, by its name: one for each rank."""
    folder = place / f"jobs-{num_ranks}"
    folder.mkdir()
    listed = []
    for name, job in jobs.items():
        paths = {"path": str(place / job["path"]), "found": str(folder / f"{name}.safetensors")}
        if "to" in job:
            paths["to"] = [str(place / target) for target in job["to"]]
        listed.append(job | paths)
    file = folder / "jobs.json"
    file.write_text(json.dumps(listed))
    process = launch(__file__, file, num_ranks=num_ranks)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return {
        name: [(folder / f"outcome-{i}-{rank}").read_text() for rank in range(num_ranks)]
        for i, name in enumerate(jobs)
    }


def write_games(hand, folder, model, *, is_poisoned=False):
    """Attempts at three tasks: a shared beginning, then one to three turns of different lengths.

    With poison, one recorded log-probability is no number.
    """
    policy = load_policy(ModelSection(path=str(model), device="cpu"))
    trajectories = []
    for task in range(3):
        for attempt in range(4):
            seen, turns = [0, 100 + task, *range(20, 50)], []
            for turn in range(1 + attempt % 3):
                said = [60 + attempt, *range(70, 72 + 3 * task + turn), 1]
                logprobs = hand.score(policy, seen, said) + 0.1 * (attempt - 1)
                if is_poisoned and (task, attempt, turn) == (1, 2, 1):
                    logprobs[0] = float("nan")
                turns.append(hand.turn(seen, said, logprobs.tolist()))
                seen = [*seen, *said, 9, 8, 7]
            trajectories.append(
                hand.trajectory(
                    f"task{task}-{attempt}",
                    turns,
                    reward=float(attempt % 2 == 0) + 0.1 * attempt,
                    task_id=f"task{task}",
                )
            )
    return hand.dataset(folder, trajectories)


CASES = {
    "tied": {},
    "untied": {"model": {"gradient_checkpointing": True}},
    "packed": {"model": {"attention": "packed"}, "algorithm": {"entropy_coef": 0.1}},
    "rows": {"model": {"attention": "rows"}},
    "scaled": {"algorithm": {"entropy_coef": 0.1}},  # logits by the model's own forward method
    "lora": {"model": {"lora_rank": 2}},
    "bfloat16": {"model": {"precision": "bfloat16"}},
    "critic": {"algorithm": {"advantage": "bilevel_gae"}},
    "cloning": {"algorithm": {"name": "filtered_bc"}},
    # a loss on trajectories, of which ranks hold parts, and what it needs beside
    "kto": {"algorithm": {"name": "kto"}},
    "gspo": {"algorithm": {"name": "starpo", "loss": "gspo", "proximal": "epoch"}},
    "held": {"algorithm": {"name": "starpo", "kl_coef": 0.1, "proximal": "epoch"}},
}
STEPS = {"epochs": 3, "trajectories_per_step": 4}  # nine
MEASURED = {"every_steps": 4, "samples": 12}
MANY_STEPS = {"epochs": 12, "trajectories_per_step": 4, "checkpoint_every_steps": 4}


@pytest.fixture(scope="module")
def place(hand, tmp_path_factory):
    """A folder with models, data and run files, all for one process and for several."""
    folder = tmp_path_factory.mktemp("ranks")
    model = hand.model(folder / "model")
    bases = {
        "untied": hand.model(folder / "untied", tie_word_embeddings=False, attention_bias=True),
        "scaled": hand.model(
            folder / "scaled", family="granite", logits_scaling=2.0, attention_multiplier=0.35
        ),
    }
    games = write_games(hand, folder / "data", model)
    poisoned = write_games(hand, folder / "poison", model, is_poisoned=True)

    def configure(name, **sections):
        base = bases.get(name.partition("-")[0], model)
        data = poisoned if name == "poisoned" else games
        return hand.run_file(
            folder / f"{name}.toml", base=base, dataset=data, output=name, **sections
        )

    for name, changes in CASES.items():
        sections = {"train": {"trajectories_per_step": 12, "tokens_per_pack": 128}} | changes
        for suffix in ("1", "2", "3"):
            configure(f"{name}-{suffix}", **sections)
    for name in ("whole", "part"):
        for kind, model_section in (("full", {}), ("lora", {"lora_rank": 2})):
            for suffix in ("1", "2"):
                configure(f"{name}-{kind}-{suffix}", model=model_section, train=STEPS)
    for name in ("killed", "terminated", "undisturbed"):
        configure(name, train=MANY_STEPS)
    configure("ceiling", algorithm={"kl_ceiling": 1e-6})
    for suffix in ("1", "2"):
        configure(f"watched-{suffix}", train=STEPS | {"learning_rate": 1e-4}, diagnostics=MEASURED)
    collapsing = {"epochs": 20, "trajectories_per_step": 4, "learning_rate": 1.0}
    configure("collapsed", train=collapsing, diagnostics={"early_stop": True})
    configure("poisoned")
    return folder


def find_ranks(process):
    """Pid of each rank that torchrun has started."""
    pids = {}
    for entry in Path("/proc").iterdir():
        try:
            is_child = f"PPid:\t{process.pid}\n" in (entry / "status").read_text()
            variables = (entry / "environ").read_bytes().split(b"\0") if is_child else []
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(b"RANK="):
                pids[int(variable[5:])] = int(entry.name)
    return pids


def disturb(place, name, disturbance):
    """Start a run through the command line, wait for its sixth step, disturb it, wait for its end."""
    process = launch("-m", "starpo_train", "run", place / f"{name}.toml")
    metrics = place / name / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and any(r.get("step") == 6 for r in read_metrics(metrics))):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    disturbance(process)
    output, _ = process.communicate(timeout=200)
    return SimpleNamespace(
        code=process.returncode,
        output=output,
        committed=list_checkpoints(place / name / "checkpoints"),
    )


@pytest.fixture(scope="module")
def killed(place):
    """SIGKILL for rank 1 of two."""
    return disturb(place, "killed", lambda p: os.kill(find_ranks(p)[1], signal.SIGKILL))


@pytest.fixture(scope="module")
def terminated(place):
    """SIGTERM for torchrun."""
    return disturb(place, "terminated", lambda p: p.send_signal(signal.SIGTERM))


@pytest.fixture(scope="module")
def one(place):
    """What one process does."""
    for kind in ("full", "lora"):
        train(read_run_config(place / f"whole-{kind}-1.toml"))
        stop = StopAt(4, os.getpid())
        train(read_run_config(place / f"part-{kind}-1.toml"), progress=stop)
        shutil.copytree(place / f"part-{kind}-1", place / f"grown-{kind}")  # to go on, on two
    return {name: measure_gradients(read_run_config(place / f"{name}-1.toml")) for name in CASES}


@pytest.fixture(scope="module")
def two(place, one, killed):
    """Outcomes of what two ranks do, by job."""
    jobs = {f"gradients {name}": {"kind": "gradients", "path": f"{name}-2.toml"} for name in CASES}
    for kind in ("full", "lora"):
        jobs |= {
            f"whole {kind}": {"kind": "train", "path": f"whole-{kind}-2.toml"},
            f"part {kind}": {"kind": "train", "path": f"part-{kind}-2.toml", "stop": 4},
            f"copy {kind}": {
                "kind": "copy",
                "path": f"part-{kind}-2",
                "to": [f"shrunk-{kind}", f"wide-{kind}"],
            },
            f"full disk {kind}": {"kind": "full_disk", "path": f"part-{kind}-2"},
            f"rest {kind}": {"kind": "resume", "path": f"part-{kind}-2"},
            f"grown {kind}": {"kind": "resume", "path": f"grown-{kind}"},
        }
    jobs |= {
        "killed": {"kind": "resume", "path": "killed"},
        "undisturbed": {"kind": "train", "path": "undisturbed.toml"},
        "ceiling": {"kind": "train", "path": "ceiling.toml"},
        "taken": {"kind": "train", "path": "ceiling.toml"},
        "poisoned": {"kind": "train", "path": "poisoned.toml"},
        "watched": {"kind": "train", "path": "watched-2.toml"},
        "collapsed": {"kind": "train", "path": "collapsed.toml"},
    }
    return do_all(place, jobs, num_ranks=2)


@pytest.fixture(scope="module")
def three(place, two):
    """Outcomes of what three ranks do, by job."""
    jobs = {"gradients tied": {"kind": "gradients", "path": "tied-3.toml"}}
    for kind in ("full", "lora"):
        jobs[f"wide {kind}"] = {"kind": "resume", "path": f"wide-{kind}"}
    return do_all(place, jobs, num_ranks=3)


def read_found(place, name, num_ranks):
    return load_file(place / f"jobs-{num_ranks}" / f"gradients {name}.safetensors")


def compare(actual, expected):
    """Largest difference of a gradient, relative to the largest gradient of all."""
    skipped = {"sums", "critic"}
    assert actual.keys() == expected.keys()
    scale = max(float(g.abs().max()) for name, g in expected.items() if name not in skipped)
    assert scale > 0
    return max(
        float((actual[name] - expected[name]).abs().max()) / scale
        for name in expected
        if name not in skipped
    )


def hash_weights(run):
    return hashlib.sha256((read_final_path(run) / "model.safetensors").read_bytes()).hexdigest()


def read_weights(run):
    return load_file(read_final_path(run) / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_two_ranks_are_those_of_one(place, one, two, name):
    """As float32 sums in another order differ, and in bfloat16 as that does; sums likewise."""
    assert two[f"gradients {name}"] == ["done"] * 2
    actual = read_found(place, name, 2)
    limit = 2e-2 if name == "bfloat16" else 1e-6
    assert compare(actual, one[name]) < limit
    if name == "critic":
        torch.testing.assert_close(actual["critic"], one[name]["critic"], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_gradients_of_three_ranks_are_those_of_one(place, one, three):
    """Three ranks of which some have slices of no rows."""
    assert three["gradients tied"] == ["done"] * 3
    assert compare(read_found(place, "tied", 3), one["tied"]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_runs_of_two_ranks_end_where_those_of_one_do(place, one, two, kind):
    """Nine steps of AdamW; the metrics are written once."""
    assert two[f"whole {kind}"] == ["done"] * 2
    expected, actual = (read_weights(place / f"whole-{kind}-{n}") for n in (1, 2))
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=2e-3, rtol=0)
    records = [
        [r for r in read_metrics(place / f"whole-{kind}-{n}" / "metrics.jsonl") if "loss" in r]
        for n in (1, 2)
    ]
    assert [r["step"] for r in records[1]] == list(range(1, 10))
    for key in ("tokens", "action_tokens"):
        assert [r[key] for r in records[1]] == [r[key] for r in records[0]]
    for ours, theirs in zip(*records, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_runs_of_two_ranks_resume_bit_for_bit(place, two, kind):
    """SIGTERM reached rank 1 only, at step 4; both stopped, and went on to the same weights."""
    assert two[f"part {kind}"] == two[f"rest {kind}"] == ["done"] * 2
    (stopped, _) = list_checkpoints(place / f"part-{kind}-2" / "checkpoints")
    assert stopped.name in ("step_000004", "step_000005")  # rank 1 may see it a step later
    assert hash_weights(place / f"part-{kind}-2") == hash_weights(place / f"whole-{kind}-2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_runs_go_on_with_another_number_of_ranks(place, one, two, three, kind):
    """From one rank to two, from two to one, from two to three: the weights of a whole run."""
    assert two[f"grown {kind}"] == ["done"] * 2
    assert three[f"wide {kind}"] == ["done"] * 3
    train(read_resumed_config(place / f"shrunk-{kind}"), resume=True)
    expected = read_weights(place / f"whole-{kind}-1")
    for run in ("grown", "shrunk", "wide"):
        actual = read_weights(place / f"{run}-{kind}")
        for name, tensor in expected.items():
            torch.testing.assert_close(actual[name], tensor, atol=2e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_one_rank_that_cannot_write_leaves_no_checkpoint(place, two, kind):
    """Rank 1 may write no file above 1000 bytes; rank 0 could, and takes its part away again."""
    first, second = two[f"full disk {kind}"]
    assert first.startswith("RankError: rank 1 failed: ")
    assert second.startswith("CheckpointError: ")
    assert "step_000009: the checkpoint cannot be written" in second
    assert "stays the newest one" in second
    # the resume after it began where this one did, and took the same steps again
    records = read_metrics(place / f"part-{kind}-2" / "metrics.jsonl")
    assert sum(record.get("step") == 9 for record in records) == 1


@pytest.mark.slow
def test_a_killed_rank_ends_the_job(place, killed, two):
    """Not zero, no torn checkpoint counts, and resuming gives the weights of a run left alone."""
    assert killed.code != 0
    assert "lost another one" in killed.output
    assert killed.committed
    assert two["killed"] == two["undisturbed"] == ["done"] * 2
    assert hash_weights(place / "killed") == hash_weights(place / "undisturbed")


@pytest.mark.slow
def test_sigterm_for_torchrun_commits_a_checkpoint(terminated, place):
    """Of the step that the ranks were at, which no checkpoint was due at; both ranks' slices are in it."""
    assert terminated.code != 0
    assert "go on with: starpo-train resume" in terminated.output
    steps = [r["step"] for r in read_metrics(place / "terminated" / "metrics.jsonl") if "loss" in r]
    checkpoint = read_checkpoint(terminated.committed[-1])
    assert checkpoint.step == steps[-1] < 36
    moments = [name for name in checkpoint.tensors if name.startswith("adamw.exp_avg.")]
    weights = load_file(checkpoint.path / "model.safetensors")
    assert {n.removeprefix("adamw.exp_avg."): checkpoint.tensors.shape(n) for n in moments} == {
        name: tuple(tensor.shape) for name, tensor in weights.items()
    }


@pytest.mark.slow
def test_what_all_ranks_refuse_is_told_by_one(two):
    """Rank 0 has the error; the others know of it, and say nothing of their own."""
    for name, error in {
        "ceiling": "DataError: KL(behaviour",
        "taken": "ConfigError: run.output",
        "poisoned": "TrainingError: step ",
    }.items():
        first, second = two[name]
        assert first.startswith(error)
        assert second.startswith("RankError: rank 0 failed: ")
    assert "trajectories task1-2. " in two["poisoned"][0]


# Parts, in this process


def test_units_are_dealt_by_hand():
    """5+3 and 4+3 for two ranks; a budget of 5 makes it two passes of like parts."""
    assert deal_units([5, 4, 3, 3], tokens_per_pack=8, num_ranks=2) == [[[0, 3]], [[1, 2]]]
    dealt = deal_units([5, 4, 3, 3], tokens_per_pack=5, num_ranks=2)
    assert dealt == [[[0], [2]], [[1], [3]]]
    assert count_longest(dealt, [5, 4, 3, 3]) == 8


def test_a_rank_without_units_has_empty_packs():
    """One unit above the budget and three ranks: one pass for each, two of them empty."""
    assert deal_units([9], tokens_per_pack=4, num_ranks=3) == [[[0]], [[]], [[]]]


def test_rows_that_share_a_prefix_are_on_one_rank(hand):
    """Of two groups with 20 tokens in common each rank has one; every row is dealt once."""
    rows = hand.rows([30, 30, 30, 30])
    for group in ((0, 2), (1, 3)):
        for row in group:
            rows[row].input_ids_T[:20] = 100 + group[0]
    dealt = deal_rows(rows, range(4), tokens_per_pack=100, share=True, num_ranks=2)
    assert sorted(sorted(row for pack in own for row in pack) for own in dealt) == [[0, 2], [1, 3]]


def test_one_group_is_shared_out_when_a_rank_would_idle(hand):
    """Eight rows with a short prefix in common: together 228 tokens on one rank, or 116 on each."""
    rows = hand.rows([44] * 8)
    for row in rows:
        row.input_ids_T[:16] = 7
    dealt = deal_rows(rows, range(8), tokens_per_pack=1000, share=True, num_ranks=2)
    assert [len(pack) for own in dealt for pack in own] == [4, 4]


def test_ranks_cover_all_rows_in_as_many_passes(hand):
    """Five ranks, rows of many lengths: each row once, packs of the same number."""
    rows = hand.rows([3, 50, 20, 7, 41, 33, 12, 5, 29, 18, 60])
    parts = [
        list(
            pack_all(
                rows, range(11), tokens_per_pack=64, shared_up_to=0, ranks=Ranks(rank=r, size=5)
            )
        )
        for r in range(5)
    ]
    assert sorted(row for part in parts for pack, _ in part for row in pack) == list(range(11))
    assert len({len(part) for part in parts}) == 1
    assert all(batch.num_tokens <= 64 for part in parts for _, batch in part)
    assert sum(batch.num_row_tokens for part in parts for _, batch in part) == 278


def test_an_empty_pack_takes_part_and_adds_nothing(model_folder, hand):
    """Its loss is 0, and every weight gets a gradient of zeros, which the other ranks wait for."""
    policy = load_policy(ModelSection(path=str(model_folder), device="cpu"))
    ranks = Ranks(rank=1, size=2)
    ((pack, batch),) = pack_all(
        hand.rows([6]), [0], tokens_per_pack=64, shared_up_to=0, ranks=ranks
    )
    assert (pack, batch.rows_R, batch.num_row_tokens, batch.num_actions) == ([], (), 0, 0)
    loss = compute_filtered_bc_loss(policy.score_actions(batch).logprobs_A, batch.weights_A).loss
    loss.backward()
    assert float(loss.detach()) == 0
    gradients = [parameter.grad for _, parameter in policy.trained_parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_slices_of_two_ranks_are_read_by_three(tmp_path):
    """Seven rows, saved as 4 and 3, read as 3, 3 and 1; what no rank sliced is rank 0's."""
    whole, scalar = torch.arange(14.0).view(7, 2), torch.tensor(5.0)
    rows, files = [], [tmp_path / name for name in name_files(2)]
    for rank, (start, stop) in enumerate(pairwise((0, 4, 7))):
        held = {"w": Slice(rows=whole[start:stop], start=start), "step": scalar}
        rows.append(save_slices(files[rank], held, is_first=rank == 0))
    assert rows == [{"w": [0, 4]}, {"w": [4, 7]}]
    saved = SavedTensors(files, {"w": [part["w"] for part in rows]})
    parts = [saved.read_rows("w", start, stop) for start, stop in pairwise((0, 3, 6, 7))]
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(saved["w"], whole)
    assert (saved.shape("w"), len(saved.read_rows("w", 7, 7)), saved["step"]) == ((7, 2), 0, scalar)


def test_rows_that_no_file_has_are_an_error(tmp_path):
    """The second rank's slice is left out of the layout."""
    files = [tmp_path / name for name in name_files(1)]
    rows = save_slices(files[0], {"w": Slice(rows=torch.zeros(2, 2), start=0)}, is_first=True)
    saved = SavedTensors(files, {"w": [rows["w"]]})
    with pytest.raises(CheckpointError, match=r"'w': not all of rows 1 to 3 were saved"):
        saved.read_rows("w", 1, 3)


def test_a_launcher_that_says_half_is_refused(monkeypatch):
    """WORLD_SIZE alone, as some containers set it; one of one is no group."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not"):
        read_ranks()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert read_ranks() is ALONE


def test_one_process_has_no_process_group(configure):
    """A run in this process never makes one."""
    train(configure())
    assert not torch.distributed.is_initialized()


def test_ranks_have_a_device_each(monkeypatch):
    """One device named for several ranks, or more ranks than devices, is an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks = Ranks(rank=5, size=8, local_rank=1)
    assert choose_device("auto", ranks) == torch.device("cuda:1")
    with pytest.raises(ModelError, match="'cuda:1': each rank takes its own; use 'cuda'"):
        choose_device("cuda:1", ranks)
    with pytest.raises(ModelError, match="rank 5 is number 2 on its machine, which has 2 CUDA"):
        choose_device("cuda", replace(ranks, local_rank=2))


def read_events(run, event):
    return [r for r in read_metrics(run / "metrics.jsonl") if r.get("event") == event]


def test_mutual_information_is_that_of_one_process(place, two):
    """Rows are dealt over ranks: the same numbers at steps 0, 4 and 8."""
    assert two["watched"] == ["done"] * 2
    train(read_run_config(place / "watched-1.toml"))
    expected, actual = (read_events(place / f"watched-{n}", "diagnostics") for n in (1, 2))
    assert [record["step"] for record in actual] == [0, 4, 8]
    for name in ("mi_per_token", "mi_per_sequence", "mi_zscore_ema_per_sequence", "answer_entropy"):
        found = [record[name] for record in actual]
        assert found == pytest.approx([record[name] for record in expected], abs=1e-3)
    for name in ("z", "num_answers", "num_prompts", "row_tokens", "retrieval_at_1"):
        assert [r[name] for r in actual] == [r[name] for r in expected]


def test_ranks_stop_a_collapsed_run_together(place, two):
    """Both end, with one record and a checkpoint."""
    assert two["collapsed"] == ["done"] * 2
    (stop,) = read_events(place / "collapsed", "early_stop")
    final = json.loads((place / "collapsed" / "final.json").read_text())
    assert (final["step"], final["early_stop"]) == (stop["step"], stop["rule"])
    assert stop["step"] < 60


if __name__ == "__main__":
    do_jobs(Path(sys.argv[1]))
