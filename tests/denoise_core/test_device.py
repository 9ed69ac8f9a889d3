import os
from types import SimpleNamespace

import pytest
import torch

from denoise_core import device
from denoise_core.errors import DenoiseError


def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def one_cuda(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=24 << 30))


def processor(monkeypatch, *, amx=False, bf16=False, amd=False):
    monkeypatch.setattr(device, "_made_by_amd", lambda: amd)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)


def test_auto_is_the_cpu_where_there_is_no_cuda_and_says_why(monkeypatch):
    no_cuda(monkeypatch)
    chosen = device.choose()
    assert chosen.name == "cpu"
    assert "no CUDA device" in chosen.reason
    assert chosen.threads >= 1


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ({}, "float32"),
        ({"amx": True, "bf16": True}, "bfloat16"),
        ({"bf16": True}, "float32"),
        ({"bf16": True, "amd": True}, "bfloat16"),
        ({"amd": True}, "float32"),
    ],
)
def test_the_processors_flags_decide_the_precision(monkeypatch, flags, precision):
    processor(monkeypatch, **flags)
    assert device.choose("cpu").precision == precision


@pytest.mark.parametrize("vendor", ["AuthenticAMD", "GenuineIntel"])
def test_who_made_the_processor_is_read(tmp_path, monkeypatch, vendor):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    assert device._made_by_amd(tmp_path / "cpuinfo") == (vendor == "AuthenticAMD")
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", f"AMD64 Family 26 Model 2 Stepping 1, {vendor}")
    assert device._made_by_amd(tmp_path / "absent") == (vendor == "AuthenticAMD")


def test_a_torch_without_the_probes_gets_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert device.choose("cpu").precision == "float32"


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
@pytest.mark.parametrize("asked", ["auto", "cuda", "cuda:0"])
def test_a_cuda_device_is_taken_with_the_precision_of_its_generation(monkeypatch, asked, capability, precision):
    one_cuda(monkeypatch, capability)
    chosen = device.choose(asked)
    assert (chosen.name, chosen.precision) == ("cuda:0", precision)
    assert "A card" in chosen.reason
    assert chosen.memory == 24 << 30


def test_an_absent_cuda_device_is_an_error_that_names_what_is_there(monkeypatch):
    no_cuda(monkeypatch)
    for asked in ("cuda", "cuda:1"):
        with pytest.raises(DenoiseError, match="the CPU and no CUDA device"):
            device.choose(asked)
    one_cuda(monkeypatch, (9, 0))
    with pytest.raises(DenoiseError, match=r"cuda:3 is not there.*cuda:0 \(A card\)"):
        device.choose("cuda:3")


@pytest.mark.parametrize("asked", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA"])
def test_an_unknown_name_is_an_error(monkeypatch, asked):
    one_cuda(monkeypatch, (9, 0))
    with pytest.raises(DenoiseError, match="Unknown device"):
        device.choose(asked)


def test_threads_follow_the_environment_then_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert device.cpu_threads() == 3
    for odd in ("0", "many", "-2", ""):
        monkeypatch.setenv("OMP_NUM_THREADS", odd)
        assert 1 <= device.cpu_threads() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("written", "cores"),
    [("150000 100000\n", 2), ("max 100000\n", None), ("5000 100000", 1), ("", None), ("x y", None), ("1 0", None)],
)
def test_a_containers_quota_is_read(tmp_path, written, cores):
    (tmp_path / "cpu.max").write_text(written)
    assert device._container_cores(tmp_path / "cpu.max") == cores
    assert device._container_cores(tmp_path / "absent") is None
