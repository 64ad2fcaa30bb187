"""What the tests of several DeBERTa modules share."""

import pytest

from modeling import attention


@pytest.fixture(params=["operator", "fused"])
def portable(request, monkeypatch):
    """Both forms of the fast kernel: that of a CPU and that of other devices, here on the CPU as well."""
    if request.param == "fused":
        monkeypatch.setattr(attention, "OPERATOR_DEVICES", ())
    return request.param
