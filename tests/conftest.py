"""Fixtures that several test files share."""

import pytest
from hypothesis import settings

from tests.commands import QUICK, run_recipe

# No test asserts a time: on a machine that is busy an example may take long.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """Both small recipes, 50 steps in one process: what all other ways of running them must equal."""
    folder = tmp_path_factory.mktemp("straight")
    return {recipe: run_recipe(folder / recipe, recipe, "--profile", "cpu") for recipe in QUICK}
