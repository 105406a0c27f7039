"""Model folders whose weights are quantised."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from starpo_train.cli import main
from starpo_train.config import ModelSection
from starpo_train.errors import ModelError
from starpo_train.model import load_policy

BLOCK = 32


def set_quantization(folder, values, *, inside=None):
    """Write `quantization_config` into a folder's config.json."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    (config[inside] if inside else config)["quantization_config"] = values
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "values",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        {"quant_method": "fp8", "weight_block_size": [32, 32]},
        {"quant_method": "one that nobody knows"},
    ],
    ids=["4bit", "8bit", "gptq", "fp8", "unknown"],
)
@pytest.mark.parametrize("rank", [0, 4])
def test_a_quantised_model_is_refused_with_or_without_lora(model_folder, tmp_path, values, rank):
    """The method is named, whether or not its package is installed, and the page that helps."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    set_quantization(folder, values)
    expected = (
        rf"quantised \({values['quant_method']}\).*docs/training\.md says \(Quantised models\)"
    )
    with pytest.raises(ModelError, match=expected):
        load_policy(ModelSection(path=str(folder), device="cpu", lora_rank=rank))


def test_a_run_on_a_quantised_model_leaves_nothing(hand, model_folder, bandit, tmp_path, capsys):
    """One line, exit code 2, no folder."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    set_quantization(folder, {"quant_method": "awq", "bits": 4})
    file = hand.run_file(tmp_path / "run.toml", base=folder, dataset=bandit)
    assert main(["run", str(file)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: model.path = '{folder}': its weights are quantised (awq)")
    assert not (tmp_path / "run").exists()


def pack_fp8(source, folder):
    """The linear layers of a model in FP8 with a scale per block; what they stand for."""
    shutil.copytree(source, folder)
    packed, plain = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        packed[name] = plain[name] = tensor
        if "_proj" in name:
            rows, columns = tensor.shape
            blocks = tensor.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
            scales = blocks.abs().amax((1, 3)) / 448
            values = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            packed[name], packed[f"{name}_scale_inv"] = values.reshape(rows, columns), scales
            plain[name] = (values.float() * scales[:, None, :, None]).reshape(rows, columns)
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    values = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    set_quantization(folder, values | {"activation_scheme": "dynamic"})
    return plain


@pytest.mark.skipif(torch.cuda.is_available(), reason="transformers keeps FP8 packed on CUDA")
def test_what_the_page_says_unpacks_a_model(hand, tmp_path):
    """Its own lines, run on an FP8 folder: the weights are value times scale, and it can be trained."""
    base = hand.model(tmp_path / "base", hidden_size=64, head_dim=16)
    plain = pack_fp8(base, tmp_path / "fp8")
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    code = re.search(r"## Quantised models.*?```python\n(.*?)```", page, re.S)
    assert code is not None
    names = {"QUANTISED": str(tmp_path / "fp8"), "PLAIN": str(tmp_path / "plain")}
    exec(code.group(1), names)
    policy = load_policy(ModelSection(path=names["PLAIN"], device="cpu", lora_rank=2))
    weights = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in policy.model.named_parameters()
        if ".lora_" not in name
    }
    assert weights.keys() == plain.keys() - {"lm_head.weight"}
    for name, weight in weights.items():
        torch.testing.assert_close(weight, plain[name], rtol=1e-6, atol=1e-7)
