"""Every shipped configuration file loads with the parser of whoever reads it, and no number has two homes."""

import json
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin

from launch.hardware import ACCELERATE_CONFIGS, load_profiles
from launch.sharding import DS_CONFIGS, list_shardings, read_sharding
from launch.strict_yaml import load_yaml

TOPOLOGY = set(
    "compute_environment distributed_type use_cpu num_machines num_processes main_process_port "
    "deepspeed_config".split()
)
DECIDED_BY_THE_PLAN = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def test_all_files_are_looked_at():
    assert len(list(ACCELERATE_CONFIGS.iterdir())) == 11
    assert len(list(DS_CONFIGS.iterdir())) == 7


@pytest.mark.parametrize("path", sorted(ACCELERATE_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_files_hold_topology_only_and_load(path):
    raw = load_yaml(path.read_text())
    assert set(raw) <= TOPOLOGY
    config = load_config_from_file(str(path))
    assert config.distributed_type == raw["distributed_type"]
    if "deepspeed_config" in raw:
        assert set(raw["deepspeed_config"]) == {"deepspeed_config_file", "zero3_init_flag"}
        assert (DS_CONFIGS.parent / raw["deepspeed_config"]["deepspeed_config_file"]).exists()


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_deepspeed_files_hold_zero_only_and_load(path):
    raw = json.loads(path.read_text())
    assert all(raw[key] == "auto" for key in DECIDED_BY_THE_PLAN)
    assert raw["fp16"] == raw["bf16"] == {"enabled": "auto"}
    assert set(raw) == {*DECIDED_BY_THE_PLAN, "fp16", "bf16", "zero_optimization"}
    plugin = DeepSpeedPlugin(hf_ds_config=str(path))
    zero = raw["zero_optimization"]
    assert plugin.zero_stage == zero["stage"]
    # DeepSpeed's default of 5e8 elements is 1 GB in fp16, twice that with overlap_comm, however small the
    # model: a fifth of a card with 11 GB. These are 0.1 GB each, large enough for full bandwidth; a larger
    # gradient (the embedding of DeBERTa-v3 has 98 million elements) is reduced where it lies.
    assert zero["reduce_bucket_size"] == 50_000_000
    assert zero["contiguous_gradients"]
    assert zero["overlap_comm"]
    stem = path.stem
    assert stem == f"zero{zero['stage']}" + {
        (False, False): "", (True, False): "-offload", (True, True): "-offload-parameters"
    }["offload_optimizer" in zero, "offload_param" in zero]  # fmt: skip


def test_every_stage_is_there_with_and_without_an_offload():
    names = [f"zero{stage}{offload}" for stage in (1, 2, 3) for offload in ("", "-offload")]
    assert list_shardings() == ["none", *sorted([*names, "zero3-offload-parameters"])]
    for name in list_shardings()[1:]:
        assert (ACCELERATE_CONFIGS / f"{name}.yaml").is_file()


@pytest.mark.parametrize("sharding", list_shardings())
def test_every_sharding_has_a_topology_that_names_its_file(sharding):
    for profile in load_profiles().values():
        for num_processes in (1, 8):
            path = profile.topology(sharding, num_processes)
            assert path.exists()
            if sharding != "none":
                assert path.stem == sharding
                named = load_yaml(path.read_text())["deepspeed_config"]["deepspeed_config_file"]
                assert Path(named).stem == sharding
    assert not read_sharding(sharding).find_errors()


def test_every_profile_names_a_sharding_that_exists():
    for profile in load_profiles().values():
        assert (profile.sharding or "none") in list_shardings()
