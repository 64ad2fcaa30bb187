import pytest

from tests.golden.record import NUM_STEPS, RECIPES, golden_path, measure, render


@pytest.mark.ranks
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_first_losses_are_the_golden_ones(recipe):
    """Byte for byte on the machine that recorded them, to 1e-4 elsewhere. If they moved and should have, say
    why in docs/decisions.md and record them anew with `make golden`; if they should not have, look for the
    change that moved them."""
    assert golden_path(recipe).exists(), (
        f"{golden_path(recipe).name} is missing: record it with `make golden`"
    )
    wanted = golden_path(recipe).read_text()
    found = render(measure(recipe))
    header, *lines = wanted.splitlines()
    if found.splitlines()[0] == header:
        assert found == wanted
    losses = [[float(line.split()[2]) for line in text.splitlines()[1:]] for text in (found, wanted)]
    assert len(lines) == NUM_STEPS
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.ranks
def test_two_runs_on_one_machine_are_equal_to_the_last_bit():
    assert measure(RECIPES[0]) == measure(RECIPES[0])
