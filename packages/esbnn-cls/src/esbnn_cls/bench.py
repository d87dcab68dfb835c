"""Benches of classifiers: the time of a training step. `tools/bench.py` runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import esbnn_cls.models  # noqa: F401  (registers our models with timm)
from esbnn_core.bench import Bench, Step, Target
from esbnn_core.training import Progress, begin_step, watch

import timm
import torch
import torch.nn.functional as F

__all__ = ["BENCHES", "TRAINING_STEP", "training_step"]

BATCH = 128
_FULL, _IRNET, _RECU, _ES = "resnet20_cifar_fp", "resnet20_cifar_irnet", "resnet20_cifar_recu", "es_resnet20_cifar_irnet"


def training_step(
    model: str, *, batch: int = BATCH, size: tuple[int, int, int] = (3, 32, 32), classes: int = 10, **model_args: Any
) -> Callable[[], Step]:
    """A case: the optimizer steps of one model, as the trainer makes them, on one batch of random images.

    size: (C, H, W). model_args: for `timm.create_model`. SGD with momentum and weight decay, as in the CIFAR recipes.
    """

    def make() -> Step:
        torch.manual_seed(0)
        network = timm.create_model(model, num_classes=classes, in_chans=size[0], **model_args).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        watch(optimizer, network)
        x, labels = torch.randn(batch, *size), torch.randint(0, classes, (batch,))
        done = 0

        def step() -> None:
            nonlocal done
            begin_step(network, Progress.at(done, steps_per_epoch=390, epochs=400))
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(x), labels).backward()
            optimizer.step()
            done += 1

        return step

    return make


TRAINING_STEP = Bench(
    "training_step",
    f"one training step of CIFAR ResNet-20, batch {BATCH}, 32x32, float32",
    {
        _FULL: training_step(_FULL),
        _IRNET: training_step(_IRNET),
        _RECU: training_step(_RECU),
        _ES: training_step(_ES, tau=2, groups=1),
    },
    (
        Target(_IRNET, _FULL, 1.4, "against full precision"),
        Target(_RECU, _FULL, 2.0, "against full precision"),
        Target(_ES, _IRNET, 1.9, "tau=2, groups=1, against the plain binary step"),
    ),
    {"batch": BATCH, "input": [3, 32, 32], "es": {"tau": 2, "groups": 1}},
)

BENCHES: tuple[Bench, ...] = (TRAINING_STEP,)
