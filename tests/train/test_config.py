"""Run files: defaults, paths, and errors that say what to do."""

import pytest

from starpo_train.config import read_run_config
from starpo_train.errors import ConfigError
from starpo_train.tomlfile import write_config

MINIMAL = '[run]\noutput = "out"\n[data]\ndataset = "../data"\n[model]\npath = "m"\n'


def read(tmp_path, text):
    file = tmp_path / "run.toml"
    file.write_text(text)
    return read_run_config(file)


def test_relative_paths_start_at_the_run_files_folder(tmp_path):
    """output, dataset and an existing model folder are resolved; a hub name stays a name."""
    (tmp_path / "m").mkdir()
    config = read(tmp_path, MINIMAL)
    assert config.run.output == tmp_path / "out"
    assert config.data.dataset == tmp_path.parent / "data"
    assert config.model.path == str(tmp_path / "m")
    assert read(tmp_path, MINIMAL.replace('"m"', '"org/name"')).model.path == f"{tmp_path}/org/name"


def test_a_model_in_the_hubs_cache_keeps_its_name(tmp_path, monkeypatch):
    """Only when there is no folder of that name."""
    monkeypatch.setattr("starpo_train.modelfolder.is_cached_model", lambda name: name == "org/name")
    text = MINIMAL.replace('"m"', '"org/name"')
    assert read(tmp_path, text).model.path == "org/name"
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert read(tmp_path, text).model.path == f"{tmp_path}/org/name"


def test_written_config_reads_back_equal(tmp_path):
    """Every option survives, lambda under its own name, quotes and backslashes too."""
    text = MINIMAL.replace('"out"', r'"a \"quoted\\ name"')
    text += "[algorithm]\nlambda = 0.9\nkl_ceiling = 1\n[train]\nthreads = 2\n"
    config = read(tmp_path, text.replace("[data]", '[data]\nmodels = ["a", "b"]'))
    assert (config.algorithm.lambda_, config.algorithm.kl_ceiling) == (0.9, 1.0)
    write_config(config, tmp_path / "resolved.toml")
    assert read_run_config(tmp_path / "resolved.toml") == config


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("[train]\nlerning_rate = 1", r"train\.lerning_rate; did you mean `learning_rate`"),
        ("[trian]\nepochs = 1", r"\[trian\]; did you mean `train`"),
        ("[algorithm]\nzzz = 1", r"algorithm\.zzz; known here: advantage, .*singleton"),
        ('[train]\nepochs = "3"', r"train\.epochs = '3': must be a whole number"),
        ("[train]\nepochs = true", r"train\.epochs = True: must be a whole number"),
        ("[train]\nepochs = 0", r"train\.epochs = 0: must be greater than 0"),
        ('[algorithm]\nname = "ppo"', r"must be auto \| starpo \| topr"),
        ("[algorithm]\nkeep_groups = 1.5", r"keep_groups = 1\.5: must be between 0 and 1"),
        ("[train]\nlearning_rate = inf", r"train\.learning_rate = inf: must be between 0 and 1"),
        ("[train]\nbeta2 = 1.0", r"train\.beta2 = 1\.0: must be between 0 and 0\.999999"),
        ("[algorithm]\nsnr_top_p = -0.1", r"snr_top_p = -0\.1: must be between 0 and 1"),
        ('[algorithm]\nadvantage = "group"', r"must be grpo \| dr_grpo \| rloo"),
        (
            '[algorithm]\nadvantage = "gdpo"\nsingleton = "learned_value"',
            "a critic values the sum of the rewards, not each",
        ),
        ("[train]\nlearning_rate = nan", r"learning_rate = nan: must be a number"),
        ("[train]\nepochs = -1", r"run\.toml: train\.epochs = -1: must be greater than 0"),
        ("[train]\nthreads = -3", r"train\.threads = -3: must be 0 or greater"),
        ("train = 3", r"train = 3: must be a table"),
    ],
)
def test_bad_options_name_the_place_and_the_way_out(tmp_path, addition, message):
    """Unknown keys name the nearest known one; wrong values say what would be right."""
    text = f"{addition}\n{MINIMAL}" if "[" not in addition else MINIMAL + addition
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_a_negative_lora_scale_is_refused(tmp_path):
    """It would train away from the data."""
    with pytest.raises(ConfigError, match=r"model\.lora_alpha = -4\.0: must be greater than 0"):
        read(tmp_path, MINIMAL.replace("[model]", "[model]\nlora_alpha = -4"))


def test_missing_required_option_is_named(tmp_path):
    """Without [model] path the error says which line to write."""
    with pytest.raises(ConfigError, match=r"model\.path is missing; write `path = "):
        read(tmp_path, '[run]\noutput = "o"\n[data]\ndataset = "d"\n')


def test_missing_and_broken_files_are_errors(tmp_path):
    """No file, and a file that is no TOML."""
    with pytest.raises(ConfigError, match="no such run file"):
        read_run_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="not a TOML file"):
        read(tmp_path, "[run")
