"""The GPU benchmark without a GPU: that it says so, and that its steps are steps."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import gpu
from modeling.canine import row_slots

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_wants():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1
    assert "wants an NVIDIA GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_side_steps_and_a_kernel_that_cannot_be_had_gives_its_reason(monkeypatch):
    monkeypatch.setattr(gpu, "NUM_PIECES", 200)
    monkeypatch.setattr(gpu, "NUM_WARMUP", 1)
    words = gpu.Shape({**SIZES, "position_buckets": 8, "max_position_embeddings": 40}, 2, 40, 40)
    names = gpu.Shape({**SIZES, "num_hash_buckets": 64, "max_position_embeddings": 64}, 3, row_slots(17), 17)
    console = Console(width=200, record=True)
    for sides, shape in ((gpu.list_deberta_sides(words), words), (gpu.list_canine_sides(names), names)):
        console.print(gpu.compare("tiny", sides, shape, torch.device("cpu"), 2, 1e12))
    text = console.export_text()
    assert "transformers" in text
    assert "attention kernel 'flash' cannot be used" in text
    assert text.count("x  ") + text.count("x ") >= 6
    assert "%" in text


def test_all_sides_of_a_model_see_the_same_loss_at_first(monkeypatch):
    monkeypatch.setattr(gpu, "NUM_PIECES", 200)
    names = gpu.Shape({**SIZES, "num_hash_buckets": 64, "max_position_embeddings": 64}, 3, row_slots(17), 17)
    batch = gpu.make_batch(names, torch.device("cpu"))
    losses = [side.build().eval()(**batch).loss.item() for side in gpu.list_canine_sides(names)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert int((batch["labels"] != -100).sum()) == 3 * round(0.15 * 17)


def test_peaks_are_those_of_the_profiles():
    from launch.hardware import load_profiles

    profiles = load_profiles()
    for name, profile in (
        ("RTX 2080 Ti", "rtx2080ti-11gb"),
        ("A100-SXM4", "a100-40gb"),
        ("H100 80GB", "h100-80gb"),
    ):
        card = profiles[profile].gpu
        assert card is not None
        assert gpu.find_peak(f"NVIDIA {name}") == card.peaks.half
    assert gpu.find_peak("NVIDIA T4") is None
