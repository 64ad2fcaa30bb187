"""The flash kernel around its package, and every kernel on a GPU."""

import pytest
import torch

from modeling.attention_flash import FLASH_MODULE, FlashRows, attend_flash, describe_rows
from modeling.layers import list_attentions
from tests.modeling.small_models import (
    assert_same_step,
    make_batch,
    make_model,
    make_packed_batch,
    step,
)


def test_rows_for_flash_bound_documents_and_padding():
    pytest.importorskip(FLASH_MODULE)
    batch = make_packed_batch(((40, 4), (75,), (3, 30, 40)))
    rows = describe_rows(batch["document_ids"] > 0, batch["document_ids"])
    assert rows.packing is not None
    bounds, description = rows.packing
    assert bounds.tolist() == [0, 40, 44, 75, 150, 153, 183, 223, 225]
    assert description.max_seqlen == 75


def test_the_package_around_our_parameters_gives_our_attention():
    pytest.importorskip(FLASH_MODULE)
    model = make_model(dtype=torch.float32)
    layer = model.deberta.encoder.layer[0].attention.self
    layer.flash_backend, layer.flash_config = "torch", model.config
    names = list(model.state_dict())
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(3, 75, 16, generator=generator, requires_grad=True)
    mask = make_batch()["attention_mask"].bool()
    rel_embeddings = model.deberta.encoder.get_rel_embedding()
    found = attend_flash(layer, hidden, FlashRows(mask), rel_embeddings)
    wanted = layer(hidden, mask[:, None, None] & mask[:, None, :, None], rel_embeddings=rel_embeddings)[0]
    torch.testing.assert_close(found[mask], wanted[mask], rtol=1e-4, atol=1e-5)
    found[mask].sum().backward()
    assert layer.query_proj.weight.grad is not None
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("sparse", [False, True])
def test_a_model_with_flash_rows_gives_the_step_of_the_reference(sparse):
    pytest.importorskip(FLASH_MODULE)
    model = make_model(sparse=sparse)
    model.attention_kernel = "flash"
    for layer in list_attentions(model.deberta.encoder):
        layer.kernel, layer.flash_backend, layer.flash_config = "flash", "torch", model.config
    assert_same_step(model, make_batch(), step(make_model(), make_batch()), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["fast", "flash"])
@pytest.mark.parametrize("make", [make_batch, make_packed_batch])
def test_kernels_of_a_gpu_give_the_step_of_the_reference(kernel, make):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if kernel == "flash":
        pytest.importorskip(FLASH_MODULE)
        if torch.cuda.get_device_capability() < (8, 0):
            pytest.skip("needs compute capability 8.0")
    batch = {name: tensor.cuda() for name, tensor in make().items()}
    wide = {"hidden_size": 64, "num_attention_heads": 2}
    _, exact = step(make_model(**wide), make())
    model = make_model(dtype=torch.float32, sparse=True, **wide).cuda()
    model.set_attention(kernel)
    first, second = step(model, batch)[1], step(model, batch)[1]
    for name, gradient in exact.items():
        error = (first[name].cpu().double() - gradient).norm() / gradient.norm()
        assert error < 1e-3, name
        assert kernel == "flash" or torch.equal(first[name], second[name]), name
