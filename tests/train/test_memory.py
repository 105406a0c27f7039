"""Packs that do not fit are split; the step stays exact, and one row too many is named."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from starpo_train.cli import main
from starpo_train.errors import TrainingError
from starpo_train.memory import PackBudget, is_out_of_memory
from starpo_train.metrics import read_metrics
from starpo_train.run import open_trainer, train
from starpo_train.run_folder import read_resumed_config


def hash_weights(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def events_of(result, name):
    return [r for r in read_metrics(result.metrics_path) if r.get("event") == name]


@pytest.fixture
def uneven(hand, model_folder, tmp_path):
    """Twelve trajectories of two tasks, rows of 12 to 45 tokens that share nothing."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(12):
        prompt = [60 + i, *generator.integers(2, 300, 9 + 3 * i).tolist()]
        turn = hand.turn(prompt, [40 + i % 2, 1], [-5.0, -5.0])
        rows.append(
            hand.trajectory(f"t{i:02}", [turn], reward=float(i % 2), task_id=f"task{i % 3}")
        )
    return hand.dataset(tmp_path / "uneven", rows)


class Memory:
    """Room for so many tokens per forward or backward pass, on every model that is loaded."""

    def __init__(self, monkeypatch):
        self.forward, self.backward = 1 << 30, 1 << 30
        from starpo_train import run

        load = run.load_policy

        def load_watched(section, **options):
            policy = load(section, **options)
            policy.model.base_model.register_forward_pre_hook(self._enter, with_kwargs=True)
            policy.model.base_model.layers[0].register_forward_hook(self._leave)
            return policy

        monkeypatch.setattr(run, "load_policy", load_watched)

    def _enter(self, module, arguments, options):
        if options["input_ids"].shape[1] > self.forward:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def _leave(self, module, arguments, output):
        def refuse(gradient):
            if gradient.shape[1] > self.backward:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(refuse)


@pytest.fixture
def memory(monkeypatch):
    return Memory(monkeypatch)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_gradients_of_a_split_step_are_those_of_the_whole(configure, uneven, memory, where):
    """A backward pass that failed half way leaves nothing behind: second layer yes, first no."""
    trainer = open_trainer(
        configure(dataset=uneven, train={"trajectories_per_step": 12}),
        resume=False,
        progress=None,
    )
    gradients = []

    def keep(step, *, grad_norm):
        gradients.append({n: p.grad.clone() for n, p in trainer.policy.trained_parameters()})
        trainer._optimizer.discard_gradients()
        return 0.0

    trainer._optimizer.apply = keep
    trainer._optimizer.clip_gradients = lambda: 1.0
    whole = trainer.train_step(list(range(12)))
    setattr(memory, where, 100)
    split = trainer.train_step(list(range(12)))
    trainer._metrics.close()
    assert (
        whole["computed_tokens"] == split["computed_tokens"] == sum(12 + 3 * i for i in range(12))
    )
    assert trainer._budget.tokens_per_pack <= 100
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
    assert split["loss"] == pytest.approx(whole["loss"], abs=1e-6)


def test_a_run_goes_on_with_what_fits_and_says_so_once(configure, uneven, memory, capsys):
    """342 tokens in one pack, room for 100: 171, then 85; the numbers of a run set to 85."""
    sections = {"train": {"epochs": 2, "trajectories_per_step": 12, "tokens_per_pack": 342}}
    sections["train"] |= {"checkpoint_every_steps": 1}
    memory.forward = 100
    config = configure("short", dataset=uneven, **sections)
    seen = []
    short = train(config, progress=seen.append)
    event = {
        "event": "pack_split",
        "tokens_per_pack": 85,
        "tokens_per_pack_before": 342,
        "step": 0,
    }
    assert events_of(short, "pack_split") == [event]
    assert [r for r in seen if r.get("event") == "pack_split"] == [event]
    state = json.loads((short.final_path / "trainer" / "state.json").read_text())
    assert state["tokens_per_pack"] == 85
    memory.forward = 1 << 30
    sections["train"]["tokens_per_pack"] = 85
    assert hash_weights(train(configure("set", dataset=uneven, **sections)).final_path) == (
        hash_weights(short.final_path)
    )


def test_a_resumed_run_keeps_the_budget_that_was_found(configure, uneven, memory):
    """Memory is free again after the resume; the weights are those of the run without a stop."""
    sections = {"train": {"epochs": 4, "trajectories_per_step": 12, "tokens_per_pack": 342}}
    memory.backward = 100
    whole = train(configure("whole", dataset=uneven, **sections))

    def stop(record):
        if record.get("step") == 2 and "loss" in record:
            os.kill(os.getpid(), signal.SIGTERM)

    part = train(configure("part", dataset=uneven, **sections), progress=stop)
    assert part.num_steps == 2
    memory.backward = 1 << 30
    resumed = train(read_resumed_config(part.metrics_path.parent), resume=True)
    assert hash_weights(resumed.final_path) == hash_weights(whole.final_path)
    assert len(events_of(resumed, "pack_split")) == 1


def test_a_row_that_never_fits_is_named(hand, configure, uneven, memory, tmp_path, capsys):
    """The longest row has 45 tokens; room for 44. One line, exit code 2."""
    memory.backward = 44
    file = hand.run_file(
        tmp_path / "tight.toml", base=configure().model.path, dataset=uneven, output="tight"
    )
    assert main(["run", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: trajectory t11: a row of 45 tokens does not fit into memory")
    for setting in ("tokens_per_pack", "gradient_checkpointing", "lora_rank", "model.device"):
        assert setting in error
    assert error.count("\n") == 1


def test_the_critics_pass_is_split_too(configure, uneven, memory):
    """Hidden states at turn starts are read before the first step."""
    memory.forward = 60
    result = train(configure(dataset=uneven, algorithm={"advantage": "bilevel_gae"}))
    assert events_of(result, "pack_split")[0]["tokens_per_pack"] <= 60
    assert result.num_steps == 3


def test_other_errors_are_not_taken_for_it():
    """What allocators say on a CPU and on a GPU, and a shape error."""
    cpu = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
    assert is_out_of_memory(RuntimeError(cpu))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_budget_of_an_earlier_life_is_no_reason_to_tell_again():
    """Found 85 of 342 before; a run file that asks for less gets less."""
    budget = PackBudget(342, found=85)
    assert (budget.tokens_per_pack, budget.found, budget.take_news()) == (85, 85, None)
    assert PackBudget(50, found=85).tokens_per_pack == 50
    assert PackBudget(342).found is None


_SHORT_OF_MEMORY = """
import json, resource, sys
from pathlib import Path
from starpo_train.config import read_run_config
from starpo_train import run

open_trainer = run.open_trainer

def open_and_limit(*arguments, **options):
    opened = open_trainer(*arguments, **options)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + int(sys.argv[2]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return opened

run.open_trainer = open_and_limit
result = run.train(read_run_config(Path(sys.argv[1])))
print(json.dumps({"steps": result.num_steps}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_a_process_that_really_runs_out_of_memory_finishes(hand, configure, tmp_path):
    """Address space ends 300 MiB above what is loaded; a step in one pack needs over a gigabyte."""
    base = hand.model(tmp_path / "wide", intermediate_size=16384)
    generator = np.random.default_rng(1)
    rows = []
    for i in range(8):
        prompt = [60 + i, *generator.integers(2, 300, 249).tolist()]
        turn = hand.turn(prompt, [40 + i % 2, 1], [-5.0, -5.0])
        rows.append(hand.trajectory(f"t{i}", [turn], reward=float(i % 2), task_id=f"k{i // 4}"))
    places = {"base": base, "dataset": hand.dataset(tmp_path / "long", rows)}
    options = {"train": {"trajectories_per_step": 8, "tokens_per_pack": 100_000}}
    file = hand.run_file(tmp_path / "short.toml", output="short", **places, **options)
    command = [sys.executable, "-c", _SHORT_OF_MEMORY, str(file), "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    records = read_metrics(tmp_path / "short" / "metrics.jsonl")
    splits = [r for r in records if r.get("event") == "pack_split"]
    assert splits
    assert splits[-1]["tokens_per_pack"] < 8 * 252
    free = train(configure("free", **places, **options))
    assert not events_of(free, "pack_split")
    expected, actual = (
        [(r["loss"], r["grad_norm"]) for r in those if "loss" in r]
        for those in (read_metrics(free.metrics_path), records)
    )
    assert actual[0] == pytest.approx(expected[0], rel=1e-3, abs=1e-6)


def test_a_gradient_that_is_no_number_names_its_trajectory(configure, uneven):
    """Every loss is finite; the gradient at one trajectory's tokens is not."""
    config = configure(dataset=uneven, train={"trajectories_per_step": 12, "tokens_per_pack": 100})
    trainer = open_trainer(config, resume=False, progress=None)
    row = trainer.data.rows[trainer.data.rows_of_N[7][0]]
    told_by = torch.from_numpy(row.input_ids_T[:5])
    passes = []

    def poison(module, arguments, output):
        ids = arguments[0][0]
        at = (ids.unfold(0, 5, 1) == told_by).all(1).nonzero().flatten()
        mask = torch.zeros(ids.shape, dtype=torch.bool).index_fill(0, at, True)
        if output.requires_grad:
            passes.append(len(ids))
            output.register_hook(
                lambda gradient: gradient.masked_fill(mask[None, :, None], torch.nan)
            )

    trainer.policy.model.get_input_embeddings().register_forward_hook(poison)
    with pytest.raises(TrainingError, match=r"the gradient norm is nan; trajectories t07\. "):
        trainer.train_step(list(range(12)))
    trainer._metrics.close()
    assert sum(passes) <= 3 * sum(12 + 3 * i for i in range(12))  # the step, and less than two more
