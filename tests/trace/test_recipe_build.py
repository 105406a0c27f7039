"""`export --recipe` on a store: labels in the tables, the recipe and the counts in the manifest."""

import json

import openai
import pytest

import starpo_trace
from starpo_trace.cli import main
from starpo_trace.convert.dataset import build_dataset
from starpo_trace.convert.manifest import read_manifest, scan_table
from starpo_trace.convert.recipe import NO_RECIPE, Recipe, ShapingRule, describe_recipe
from starpo_trace.errors import ConfigError
from starpo_trace.testing import Reply, ScriptedServer

RECIPE = """
[rewards.solved]
[rewards.stars]
weight = 0.5
range = [1, 5]
normalise = true
missing = "skip"
[shaping.length]
expr = "-0.01 * turn"
[duplicates]
exact = true
[quotas.task]
by = "task"
max = 1
"""


def play(client, task, solved, stars):
    with starpo_trace.trajectory(task_id=task):
        messages = [{"role": "user", "content": f"task {task}"}]
        client.chat.completions.create(model="tiny", messages=messages)
        starpo_trace.reward(solved, name="solved", source="environment")
        if stars is not None:
            starpo_trace.reward(stars, name="stars", source="user")


@pytest.fixture
def store(tmp_path):
    """Three runs of one task, the second a repeat of the first, and one of another."""
    starpo_trace.instrument(store=tmp_path / "store")
    try:
        with (
            ScriptedServer([Reply(content=text) for text in "aabc"]) as server,
            openai.OpenAI(base_url=server.base_url, api_key="none") as client,
        ):
            play(client, "x", 1.0, 3.0)
            play(client, "x", 0.0, None)
            play(client, "x", 0.0, 5.0)
            play(client, "y", 1.0, 1.0)
    finally:
        starpo_trace.uninstrument()
    return tmp_path / "store"


def test_export_with_a_recipe(store, tmp_path, capsys):
    """Rewards by hand: 1 + 0.5 * 0.5, 0, 0 + 0.5 * 1, 1 + 0; the repeat and the quota leave two."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    dataset = tmp_path / "dataset"
    assert main(["export", str(store), "-o", str(dataset), "--recipe", str(recipe)]) == 0
    rows = scan_table(dataset, "trajectories").sort("started_ns").collect()
    assert rows["reward"].to_list() == [1.25, 0.0, 0.5, 1.0]
    because = rows["excluded_because"].to_list()
    assert because[1] == ["duplicate"]
    assert sorted([because[0], because[2]]) == [[], ["quota:task"]]
    assert because[3] == []
    assert rows["group_id"].to_list() == ["x", "x", "x", "y"]
    assert scan_table(dataset, "turns").collect()["shaping"].to_list() == [0.0] * 4
    manifest = read_manifest(dataset)
    assert manifest.parameters["recipe"]["rewards"]["stars"]["range"] == [1.0, 5.0]
    assert manifest.parameters["recipe"]["splits"]["straddling"] == "train"
    assert manifest.curation["kept"] == 2
    assert manifest.curation["excluded_by_first_reason"] == {"duplicate": 1, "quota:task": 1}
    assert "recipe" not in capsys.readouterr().err


def test_without_a_recipe_the_manifest_says_so(store, tmp_path):
    """Every rule at its default, everything kept."""
    manifest = build_dataset([store], tmp_path / "dataset")
    assert manifest.parameters["recipe"] == json.loads(json.dumps(describe_recipe(NO_RECIPE)))
    assert manifest.curation["kept"] == manifest.curation["trajectories"] == 4


def test_export_and_show_say_what_a_recipe_did(store, tmp_path, capsys):
    """What is left out, what is held out, and a reward's name that nothing has."""
    recipe, dataset = tmp_path / "recipe.toml", str(tmp_path / "dataset")
    recipe.write_text(
        RECIPE + '[rewards.solvd]\nmissing = 0.0\n[distribution]\nood_task_prefixes = ["y"]\n'
    )
    said = [
        "kept 2 of 4 trajectories",
        "        1  train, of 3",
        "        1  test, of 1",
        "        1  left out: duplicate",
        "        1  left out: quota:task",
        "rewards.solvd of the recipe: no reward has this name",
    ]
    assert main(["export", str(store), "-o", dataset, "--recipe", str(recipe)]) == 0
    assert capsys.readouterr().out.splitlines()[-6:] == said
    assert main(["show", dataset]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[shown.index(said[0]) :][:6] == said


def test_without_a_recipe_nothing_is_said_of_one(store, tmp_path, capsys):
    """The export's last line is the funnel's."""
    assert main(["export", str(store), "-o", str(tmp_path / "dataset")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].strip().endswith("rewards not signed")


def test_two_builds_are_equal(store, tmp_path):
    """The same store and recipe give the same digest."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    digests = {
        build_dataset([store], tmp_path / name, recipe=recipe).digest for name in ("one", "two")
    }
    assert len(digests) == 1


def test_a_bad_recipe_ends_the_command_before_anything_is_written(store, tmp_path, capsys):
    """One line that names file and key, exit code 1, no dataset; what only the data shows too."""
    recipe, dataset = tmp_path / "recipe.toml", tmp_path / "dataset"
    command = ["export", str(store), "-o", str(dataset), "--recipe", str(recipe)]
    for text, said in (
        ("[spilts]", "unknown key [spilts]; did you mean `splits`?"),
        ('[shaping.x]\nexpr = "1 / turn"', "shaping.x: trajectory"),
        ('[quotas.x]\nby = "task"\nmax_share = 0.1', "quotas.x: max_share = 0.1 cannot hold"),
    ):
        recipe.write_text(text)
        assert main(command) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert said in lines[0]
        assert not dataset.exists()


def test_recipe_and_fraction_are_refused_together(tmp_path):
    """Both would say what is held out."""
    with pytest.raises(ConfigError, match=r"test_fraction = 0.5 beside a recipe; write test = 0.5"):
        build_dataset([tmp_path], tmp_path / "dataset", test_fraction=0.5, recipe=NO_RECIPE)


def test_a_recipe_made_in_python_is_checked(tmp_path):
    """Its expressions are looked at before the sources are read."""
    recipe = Recipe(shaping={"x": ShapingRule(expr="trun")})
    with pytest.raises(ConfigError, match="unknown column trun"):
        build_dataset([tmp_path], tmp_path / "dataset", recipe=recipe)
