"""How many tokens a forward takes: as many as are best for speed, fewer where memory is scarce."""

from dataclasses import replace

import psutil
import pytest
import torch
from transformers import GPT2Config

from editing_core.models import memory
from editing_core.models.memory import Sizes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
POCKET = Sizes.of(
    GPT2Config(vocab_size=5120, n_embd=256, n_layer=6, activation_function="gelu_pytorch_tanh"), torch.float32
)
LARGE = Sizes.of(GPT2Config(), torch.float32)


def free(monkeypatch, count):
    monkeypatch.setattr(memory, "free_bytes", lambda _device: count)


def test_on_ordinary_machines_the_bounds_decide(monkeypatch):
    found = set()
    for count in (3e9, 7e9, 1e12):
        free(monkeypatch, count)
        found.add((memory.forward_tokens(POCKET, CPU), memory.backward_tokens(POCKET, CPU, 6), memory.room_bytes(CPU)))
        found.add((8192, 4096, 2**28))
        assert memory.forward_tokens(LARGE, CPU) == 2048
    assert len(found) == 1


def test_scarce_memory_lowers_the_budget(monkeypatch):
    counts = (10**12, 8 * 10**8, 10**8, 10**7, 0)
    for of in (
        lambda: memory.forward_tokens(POCKET, CPU),
        lambda: memory.backward_tokens(POCKET, CPU, 3),
        lambda: memory.backward_tokens(POCKET, CPU, 3, trained=True),
    ):
        found = []
        for count in counts:
            free(monkeypatch, count)
            found.append(of())
        assert found == sorted(found, reverse=True)
        assert found[0] > found[2] > found[3]
        assert found[-1] == memory.LEAST


def test_what_runs_together_takes_at_most_its_share(monkeypatch):
    for count in (10**8, 10**9, 10**10):
        free(monkeypatch, count)
        for sizes in (POCKET, LARGE):
            tokens = memory.forward_tokens(sizes, CPU)
            assert tokens * (sizes.state + sizes.logits) <= memory.SHARE * count


def test_more_blocks_wider_states_and_more_words_take_more():
    assert memory.backward_tokens(LARGE, CPU, 12) < memory.backward_tokens(LARGE, CPU, 1)
    assert replace(LARGE, vocabulary=10).logits < LARGE.logits
    assert Sizes.of(GPT2Config(), torch.bfloat16).kept == LARGE.kept / 2


def test_an_accelerator_has_bounds_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (80 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 3 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 10**9)
    assert memory.free_bytes(CUDA) == 82 * 10**9  # what torch holds and does not use is free
    assert memory.forward_tokens(POCKET, CUDA) == 65_536
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10**9, 80 * 10**9))
    assert memory.forward_tokens(POCKET, CUDA) < 65_536


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("own", [True, False], ids=["own folder", "inside a container"])
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, version, own):
    if version == 1:
        line, root, names = (
            "4:memory:/docker/abc\n3:cpuset:/\n",
            tmp_path / "memory",
            ("limit_in_bytes", "usage_in_bytes"),
        )
        pages = "total_inactive_file"
    else:
        line, root, names, pages = "0::/docker/abc\n", tmp_path, ("max", "current"), "inactive_file"
    folder = root / "docker" / "abc" if own else root
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (2_000_000, 500_000), strict=True):
        (folder / f"memory.{name}").write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{pages} 100000\n")
    (tmp_path / "own").write_text(line)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "OWN_CGROUP", tmp_path / "own")
    assert memory.free_bytes(CPU) == 1_600_000
    (folder / f"memory.{names[0]}").write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    assert memory.free_bytes(CPU) > 1_600_000


def test_without_limits_it_is_what_the_machine_has(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "OWN_CGROUP", tmp_path / "missing")
    assert memory.free_bytes(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
