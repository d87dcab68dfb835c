"""Keyed randomness: a random stream is a function of a key, not a state that has to be carried along.

A trainer that draws everything random from keys such as (seed, "sample", epoch, index) gives the same run whatever the number of
workers, whoever prefetches what, and wherever it is resumed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["capture", "generator", "key_seed", "keyed", "restore", "seed_all"]


def key_seed(*key: Any) -> int:
    """A seed of 63 bits for a key of plain values (numbers, texts): blake2b over its repr, equal on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_all(*key: Any) -> None:
    """Seed python's, numpy's and torch's global streams from a key (about 10 microseconds).

    torch's CPU generator is seeded directly: `torch.manual_seed` visits every accelerator and costs 100 times as much.
    """
    seed = key_seed(*key)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def generator(*key: Any) -> torch.Generator:
    """An own CPU generator seeded from a key; the global streams are left alone."""
    return torch.Generator().manual_seed(key_seed(*key))


@contextmanager
def keyed(*key: Any) -> Iterator[None]:
    """Seed the three global streams from a key inside the block, and put them back after it."""
    state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed_all(*key)
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.default_generator.set_state(state[2])


def capture() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The global streams' states as (tensors, JSON values), for a training state without pickles."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    name, np_words, position, has_gauss, np_gauss = legacy
    tensors = {
        "torch": torch.default_generator.get_state(),
        "numpy": torch.from_numpy(np_words.astype(np.int64)),
        "python": torch.tensor(words, dtype=torch.int64),
    }
    values = {
        "python": {"version": version, "gauss": gauss},
        "numpy": {"name": name, "position": int(position), "has_gauss": int(has_gauss), "gauss": float(np_gauss)},
    }
    return tensors, values


def restore(tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put back what `capture` returned."""
    own, theirs = values["python"], values["numpy"]
    random.setstate((own["version"], tuple(tensors["python"].tolist()), own["gauss"]))
    words = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((theirs["name"], words, theirs["position"], theirs["has_gauss"], theirs["gauss"]))
    torch.default_generator.set_state(tensors["torch"].to(torch.uint8))
