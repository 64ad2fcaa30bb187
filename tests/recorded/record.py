"""What every shipped recipe is launched with on 1, 8 and 4 x 8 GPUs: `python -m tests.recorded.record`."""

from pathlib import Path

from launch.command import build_command, command_text
from launch.hardware import load_profiles
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_file import read_recipe, shipped_recipes
from launch.rendering import render_configs
from launch.steps import Corpus

FOLDER = Path(__file__).parent / "commands"
RECIPES = [path.stem for path in shipped_recipes()]
WORLDS = {"1": (1, 1), "8": (8, 1), "4x8": (8, 4)}
SHARDINGS = ("none", "zero2")


def describe(recipe_name, devices, nodes, sharding):
    """The command of a plan and the configuration files that it names, as one text."""
    recipe, profile = read_recipe(recipe_name), load_profiles()["a100-40gb"]
    options = Options(devices=devices, nodes=nodes, sharding=sharding)
    plan = make_plan(recipe, profile, options, Corpus(100_000_000, 1_500_000_000, "declared"))
    assert plan.errors == [], plan.errors
    output = f"runs/{recipe_name}"
    command = build_command(plan, profile, recipe_name, output=Path(output))
    text = command_text(plan.model_copy(update={"command": command, "environment": {}}))
    for name, content in render_configs(plan, profile, recipe.training, output).items():
        text += f"\n--- {name}\n{content}"
    return text


def describe_all(recipe_name):
    """Every world and sharding of a recipe."""
    return "\n".join(
        f"===== {world} GPUs, sharding {sharding}\n{describe(recipe_name, *size, sharding)}"
        for world, size in WORLDS.items()
        for sharding in SHARDINGS
    )


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in RECIPES:
        (FOLDER / f"{name}.txt").write_text(describe_all(name), encoding="utf-8")
