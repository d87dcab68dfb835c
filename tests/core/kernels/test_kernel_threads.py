"""Several callers at once, children of fork and spawn, and torch's number of threads."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernel_cases import Layer


def _layer(seed: int = 0) -> Layer:
    return Layer(2, 20, 20, 1, 128, 24, (3, 3), padding=(1, 1), threshold="both", seed=seed)


def test_several_python_threads_at_once_get_their_own_results(native: ctypes.CDLL) -> None:
    torch.set_num_threads(3)
    layers = [_layer(seed) for seed in range(6)]
    wanted = [layer.sums() for layer in layers]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(Layer.run, layers), wanted, strict=True):
                assert torch.equal(got, want)


def _child(seed: int) -> bool:
    torch.set_num_threads(2)
    return torch.equal(_layer(seed).run(), _layer(seed).sums())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_makes_threads_of_its_own(native: ctypes.CDLL) -> None:
    torch.set_num_threads(2)
    layer = _layer()
    layer.run()  # the parent's threads are awake
    wanted = layer.sums()
    torch.set_num_threads(1)  # torch's own threads do not survive a fork
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            torch.set_num_threads(2)
            status = 0 if all(torch.equal(layer.run(), wanted) for _ in range(5)) else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert torch.equal(layer.run(), wanted)


@pytest.mark.slow
def test_worker_processes_by_spawn_compute_the_same(native: ctypes.CDLL) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert all(pool.map(_spawned, range(2)))


def _spawned(seed: int) -> bool:
    return _child(seed)
