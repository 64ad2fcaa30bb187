"""What docs/promises.md names as the test of a promise is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = sorted(set(re.findall(r"`(tests/[\w/.:]+)`", (ROOT / "docs" / "promises.md").read_text("utf-8"))))


def test_the_promises_name_tests():
    assert len(NAMED) > 30


@pytest.mark.parametrize("name", NAMED)
def test_a_test_of_a_promise_is_there(name):
    path, _, function = name.partition("::")
    assert (ROOT / path).exists()
    if function:
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8")
