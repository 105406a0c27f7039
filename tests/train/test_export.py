"""What leaves a run: whole model folders with their lineage, in the type asked for, and adapters."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from starpo_train.cli import main
from starpo_train.modelfolder import read_commit
from starpo_train.run import train

IDS = torch.tensor([[0, 20, 21, 60, 40, 1]])


@pytest.fixture(scope="module")
def base(hand, tmp_path_factory):
    """A model folder as people have them: a card, a licence, two ids that end an answer."""
    folder = hand.model(tmp_path_factory.mktemp("base") / "base", family="llama")
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n# Base\n")
    (folder / "LICENSE").write_text("Permission is hereby granted")
    (folder / "USE_POLICY.md").write_text("Be kind.")
    (folder / "pytorch_model.bin").write_bytes(b"old weights")
    generation = {"eos_token_id": [1, 5], "temperature": 0.6, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="module")
def make_run(hand, base, tmp_path_factory):
    from starpo_train.config import read_run_config

    folder = tmp_path_factory.mktemp("runs")
    dataset = hand.bandit(folder / "data", base)

    def make(name, **sections):
        file = hand.run_file(
            folder / f"{name}.toml", base=base, dataset=dataset, output=name, **sections
        )
        return train(read_run_config(file))

    return make


@pytest.fixture(scope="module")
def full_run(make_run):
    return make_run("full", run={"name": "shop | agent"})


@pytest.fixture(scope="module")
def lora_run(make_run):
    return make_run("lora", model={"lora_rank": 4, "lora_alpha": 6.0}, train={"epochs": 4})


def compute_logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


def test_a_checkpoint_has_what_the_base_had_beside_its_weights(full_run, base):
    """Licence, chat template, both ends of an answer; not the old weights, not the old card."""
    folder = full_run.final_path
    names = {path.name for path in folder.iterdir()}
    assert {"LICENSE", "USE_POLICY.md", "chat_template.jinja", "generation_config.json"} <= names
    assert "pytorch_model.bin" not in names
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 5]
    template = AutoTokenizer.from_pretrained(folder).chat_template
    assert template == AutoTokenizer.from_pretrained(base).chat_template


def test_the_card_says_where_the_model_comes_from(full_run, base):
    """Read by the hub's own library; no name of it is a path of this machine."""
    from huggingface_hub import ModelCard

    card = ModelCard.load(full_run.final_path / "README.md")
    front = card.data.to_dict()
    assert (front["license"], front["library_name"]) == ("mit", "transformers")
    assert front["pipeline_tag"] == "text-generation"
    assert "base_model" not in front
    for part in (
        f"| Base model | {base} |",
        "digest made-by-hand",
        "| Algorithm | starpo: ",
        "| Licence | mit, the base model's |",
        "| num_trajectories | 8 |",
        "| grad_norm | ",
        "AutoModelForCausalLM.from_pretrained",
        "vllm serve",
        "# shop | agent",
    ):
        assert part in card.content


@pytest.mark.parametrize("kind", ["full_run", "lora_run"])
def test_the_folder_has_what_vllm_reads(kind, request, base):
    """Weights named and shaped as the base's, in one type; architecture; no trace of LoRA."""
    folder = request.getfixturevalue(kind).final_path
    weights, original = (
        load_file(folder / "model.safetensors"),
        load_file(base / "model.safetensors"),
    )
    assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in original.items()}
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    config = json.loads((folder / "config.json").read_text())
    before = json.loads((base / "config.json").read_text())
    assert config == before | {"transformers_version": config["transformers_version"]}
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    # every weight file at the top is read; the optimizer's state is not there
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 1


def test_exporting_an_unended_run_says_so(full_run, tmp_path, capsys):
    """Its newest checkpoint is not its result."""
    run = shutil.copytree(full_run.metrics_path.parent, tmp_path / "run")
    for name, is_told in (("ended", False), ("unended", True)):
        assert main(["export", str(run), "-o", str(tmp_path / name)]) == 0
        told = f"from step_000002 of a run that has not ended (starpo-train resume {run})"
        assert (told in capsys.readouterr().out) == is_told
        (run / "final.json").unlink(missing_ok=True)


def test_export_in_bfloat16(full_run, tmp_path, capsys):
    """Half the bytes, the same numbers within its precision, committed, without the optimizer."""
    run = full_run.metrics_path.parent
    assert main(["export", str(run), "-o", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert f"written: {tmp_path}/out" in capsys.readouterr().out
    exported = load_file(tmp_path / "out" / "model.safetensors")
    modes = {
        (tmp_path / "out" / name).stat().st_mode for name in ("model.safetensors", "config.json")
    }
    assert len(modes) == 1  # whoever may read the one may read the other
    trained = load_file(full_run.final_path / "model.safetensors")
    assert all(torch.equal(exported[name], trained[name].bfloat16()) for name in trained)
    assert not (tmp_path / "out" / "trainer").exists()
    lineage = read_commit(tmp_path / "out")["lineage"]
    assert lineage["exported"] == {"checkpoint": "step_000002", "dtype": "bfloat16"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16
    expected = compute_logits(AutoModelForCausalLM.from_pretrained(full_run.final_path))
    torch.testing.assert_close(compute_logits(model), expected, rtol=0.05, atol=0.05)
    assert (tmp_path / "out" / "LICENSE").is_file()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # in peft
def test_adapter_loads_onto_the_base_with_peft(lora_run, base, tmp_path):
    """Base and adapter give what the merged checkpoint gives; the base alone does not."""
    from peft import PeftModel

    run = lora_run.metrics_path.parent
    assert main(["export", str(run), "-o", str(tmp_path / "adapter"), "--adapter"]) == 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 6, "LORA")
    assert config["base_model_name_or_path"] == str(base)
    merged = compute_logits(AutoModelForCausalLM.from_pretrained(lora_run.final_path))
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert not torch.allclose(compute_logits(plain), merged, atol=0.05)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    torch.testing.assert_close(compute_logits(adapted), merged, rtol=1e-4, atol=1e-4)


def test_exports_that_cannot_be_are_one_clear_line(full_run, tmp_path, capsys):
    """No adapter, a folder that is taken, no run."""
    run = str(full_run.metrics_path.parent)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    for arguments, message in (
        ([run, "-o", str(tmp_path / "a"), "--adapter"], "there is no adapter to export"),
        ([run, "-o", str(tmp_path / "taken")], "exists and is not empty"),
        ([str(tmp_path), "-o", str(tmp_path / "b")], "nor a run that has one"),
    ):
        assert main(["export", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("adapter", [[], ["--adapter"]])
def test_exports_into_a_run_or_a_committed_folder_are_refused(
    full_run, lora_run, tmp_path, capsys, monkeypatch, adapter
):
    """The run's own folder, its checkpoints, another run, a model folder; nothing is written there."""
    run = (lora_run if adapter else full_run).metrics_path.parent
    checkpoint = next((run / "checkpoints").iterdir())
    other = full_run.metrics_path.parent
    before = sorted(run.rglob("*"))
    monkeypatch.chdir(run)
    for output in (run, run / "out", run / "checkpoints" / "step_000009", other / "a" / "b", "."):
        for source in (run, checkpoint):
            assert main(["export", str(source), "-o", str(output), *adapter]) == 2
            found = other if str(output).startswith(str(other)) else run
            assert capsys.readouterr().err == (
                f"error: {output} is in {found}, the folder of a run; choose a folder outside "
                "of it.\n"
            )
    assert sorted(run.rglob("*")) == before
    out = tmp_path / "out"
    assert main(["export", str(run), "-o", str(out), *adapter]) == 0
    assert main(["export", str(run), "-o", str(out / "again"), *adapter]) == 2
    assert "a committed model folder, which must stay as it is" in capsys.readouterr().err
    read_commit(out)


def test_a_dataset_is_no_place_for_a_model_or_a_run(full_run, hand, tmp_path, capsys):
    """No other version could be exported to it then."""
    run = hand.trajectory("run", [hand.turn([0, 20], [40, 1], [-0.7, -0.1])], reward=1.0)
    dataset = hand.dataset(tmp_path / "data", [run])
    output = dataset / "out"
    assert main(["export", str(full_run.metrics_path.parent), "-o", str(output)]) == 2
    assert f"{output} is in {dataset}, a dataset, which" in capsys.readouterr().err
    assert not output.exists()


def test_an_export_beside_a_run_file_is_allowed(full_run, tmp_path):
    """A project's folder may hold a run file called run.toml."""
    (tmp_path / "run.toml").touch()
    assert main(["export", str(full_run.metrics_path.parent), "-o", str(tmp_path / "out")]) == 0


def test_a_damaged_checkpoint_is_not_exported(make_run, tmp_path, capsys):
    """The one before it is named, and can be exported."""
    result = make_run("two", train={"checkpoint_every_steps": 1})
    run = result.metrics_path.parent
    (result.final_path / "config.json").write_text("{}")
    whole = run / "checkpoints" / "step_000001"
    assert main(["export", str(run), "-o", str(tmp_path / "out")]) == 2
    told = f"the newest whole one before it is step_000001: export that one, {whole}."
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["export", str(whole), "-o", str(tmp_path / "out")]) == 0


def test_an_exported_model_that_was_changed_is_refused(full_run, tmp_path, capsys):
    """As a checkpoint is: by what trains on it or serves it."""
    run = str(full_run.metrics_path.parent)
    assert main(["export", run, "-o", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "README.md").open("a") as card:
        card.write("More.")
    assert main(["export", str(tmp_path / "out"), "-o", str(tmp_path / "again")]) == 2
    assert "README.md does not match its SHA-256" in capsys.readouterr().err
