"""What DeepSpeed is told, and what is refused before it is started; its runs are in `test_distributed_runs.py`."""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import TCPStore
from transformers import AutoConfig, AutoModelForCausalLM

from dil_cli.config.distributing import DistributedConfig, Sharding
from dil_cli.distributed import tensors, zero3
from dil_cli.distributed.world import World


def told(bf16: bool = False, offload: bool = False) -> dict[str, Any]:
    config = DistributedConfig(kind=Sharding.zero3, processes=4, offload=offload)
    return zero3.deepspeed_config(config, World(1, 4, sharded=True), hidden=100, bf16=bf16)


def test_accelerate_completes_the_configuration():
    config = told()
    assert {key: value for key, value in config.items() if "batch" in key or "accumulation" in key} == {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "train_batch_size": 4,
    }  # fmt: skip
    assert config["steps_per_print"] == float("inf")
    assert "gradient_clipping" not in config
    parts = config["zero_optimization"]
    assert parts["stage"] == 3
    assert parts["offload_param"] == parts["offload_optimizer"] == {"device": "none"}
    assert parts["reduce_bucket_size"] == 10_000
    assert parts["stage3_prefetch_bucket_size"] == 9_000
    assert parts["stage3_param_persistence_threshold"] == 1_000


def test_precision_is_that_of_autocast():
    """DeepSpeed's own bf16 would round the weights that a run starts from."""
    for bf16 in (False, True):
        config = told(bf16=bf16)
        assert config["torch_autocast"] == {"enabled": bf16, "dtype": "bfloat16"}
        assert "bf16" not in config
        assert "fp16" not in config


def test_offload_is_of_weights_and_optimiser():
    config = told(offload=True)
    parts = config["zero_optimization"]
    assert parts["offload_param"] == parts["offload_optimizer"] == {"device": "cpu"}
    assert config["zero_force_ds_cpu_optimizer"] is False


def test_without_the_extra_it_is_said_before_anything_starts(
    dil_here, small_run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(zero3, "find_spec", lambda name: None)
    code, _, err = dil_here("train", *small_run, "distributed=zero3", "distributed.processes=2")
    assert code == 2
    assert err.splitlines() == [
        "error: ZeRO-3 is DeepSpeed's, which is not installed",
        "where: distributed.kind=zero3",
        "fix:   pip install 'dil[deepspeed]', or distributed=fsdp2",
    ]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("kind", ["fsdp2", "zero3"])
@pytest.mark.parametrize("optim", ["adamw_8bit", "muon"])
def test_an_optimiser_of_whole_weights_is_refused(kind, optim, dil_here, small_run):
    code, _, err = dil_here("train", *small_run, f"optim={optim}", f"distributed={kind}", "distributed.processes=2")
    assert code == 2
    assert err.splitlines() == [
        f"error: {optim} needs whole weights, each process has its part of them",
        f"where: optim.kind={optim} distributed.kind={kind}",
        "fix:   optim=adamw, or distributed=ddp",
    ]


def test_weights_of_two_bytes_are_refused(dil_here, small_run):
    code, _, err = dil_here("train", *small_run, "model.dtype=bf16", "distributed=zero3", "distributed.processes=2")
    assert code == 2
    assert err.splitlines() == [
        "error: DeepSpeed keeps weights in float32",
        "where: model.dtype=bf16 distributed.kind=zero3",
        "fix:   model.dtype=fp32 precision=bf16, or distributed=fsdp2",
    ]


@pytest.mark.distributed
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install 'dil[deepspeed]'")
def test_offloaded_it_is_the_same_and_comes_back(tmp_path: Path):
    """On a CPU nothing is saved by it, which is why a run refuses it there; the way of the numbers is the GPU's."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(_offloaded, args=(2, store.port), nprocs=2)


def _offloaded(rank: int, size: int, port: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    dist.init_process_group("gloo", store=TCPStore("127.0.0.1", port), rank=rank, world_size=size)
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        "llama", vocab_size=101, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    model: Any = AutoModelForCausalLM.from_config(shape)
    whole = copy.deepcopy(model)
    ids_BT, slope_B = torch.randint(101, (4, 7)), torch.randn(4)
    config = DistributedConfig(kind=Sharding.zero3, processes=size, offload=True)
    alone, optimiser = (torch.optim.AdamW(one.parameters(), lr=1e-3) for one in (whole, model))
    parted = zero3.part(
        model, optimiser, config, World(rank, size, sharded=True), torch.device("cpu"), False, passes="passes"
    )
    for _ in range(3):
        alone.zero_grad()
        _logps(whole, ids_BT).backward(slope_B)
        norm = nn.utils.clip_grad_norm_(whole.parameters(), 1.0)
        alone.step()
        for pair in range(rank, 4, size):
            model.passes(_logps, ids_BT[pair : pair + 1]).backward(slope_B[pair : pair + 1] * size)
        torch.testing.assert_close(tensors.clip(model.parameters(), 1.0).float(), norm, rtol=1e-6, atol=0)
        parted.step()
        parted.zero_grad()
        assert tensors.clip(model.parameters(), 1.0) == 0
        moments = dict(parted.moments())
        for number, (parameter, expected) in enumerate(zip(model.parameters(), whole.parameters(), strict=True)):
            value = tensors.whole(parameter)
            torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(moments[number], alone.state[expected], rtol=1e-4, atol=1e-8)
            # Taken away and given back, it goes on as if it had not been.
            tensors.put(parameter, torch.zeros_like(value))
            assert not tensors.whole(parameter).any()
            tensors.put(parameter, value)
            for name in zero3.MOMENTS:
                moments[number][name] = tensors.part_like(parameter, moments[number][name])
        parted.load_moments(moments)
    dist.destroy_process_group()


def _logps(model: Any, ids_BT: Tensor) -> Tensor:
    hidden_BTD = model.base_model(input_ids=ids_BT).last_hidden_state[:, :-1]
    logps_BTV = (hidden_BTD @ model.get_output_embeddings().weight.T).log_softmax(-1)
    logps_B: Tensor = logps_BTV.gather(-1, ids_BT[:, 1:, None]).sum((1, 2))
    return logps_B
