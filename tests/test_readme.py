"""The README's commands exist, its tree is the tree, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from launch.cli import _build_parser
from launch.recipe_file import read_recipe, shipped_recipes
from launch.request import parse
from launch.sweeping.axes import read_space

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line
]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("maskwright ")])
def test_a_command_of_the_readme_parses(line):
    arguments = parse(_build_parser(), shlex.split(line)[1:])
    assert callable(arguments.verb)
    if line.startswith("maskwright sweep "):
        assert read_space(arguments.overrides, is_search=False).axes
    elif hasattr(arguments, "recipe"):
        read_recipe(arguments.recipe, arguments.overrides)


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", README))
    assert named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_configuration_files_of_the_readme_exist():
    for name in re.findall(r"--config_file (\S+)", README):
        assert (ROOT / name).exists()


def test_the_tree_of_the_readme_is_the_tree():
    block = re.search(r"## The tree\n\n```text\n(.*?)```", README, re.DOTALL)
    assert block
    folders = [line.split()[0].rstrip("/") for line in block[1].splitlines()]
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_every_shipped_recipe_is_in_the_readme():
    for path in shipped_recipes():
        assert f"`{path.stem}`" in README


def test_links_between_documents_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_recipe_in_the_readme_reads(tmp_path):
    text = next(block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert read_recipe(path).name == "my-encoder"
