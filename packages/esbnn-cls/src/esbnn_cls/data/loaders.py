"""From a source to batches: the choice between decoding once into memory and decoding anew every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

from esbnn_cls.data.batches import Geometry, MemoryBatches
from esbnn_cls.data.cache import decoded, is_small
from esbnn_cls.data.preprocess import Preprocess
from esbnn_cls.data.source import Source
from esbnn_cls.recipe import Augment
from esbnn_core.errors import UserError

import torch
from torch import Tensor

__all__ = ["Batches", "open_batches"]


class Batches(Protocol):
    """Normalised batches of one split: x float32 [n, C, H, W] and labels int64 [n], on the device that was asked for."""

    def __len__(self) -> int: ...

    def training(self, geometry: Geometry, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The parts of an epoch's optimizer steps from step `start` on, `geometry.accumulation` parts a step."""

    def evaluation(self, batch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's contiguous share of all images, in order."""


def open_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    augment: Augment | None = None,
    storage: Literal["auto", "memory", "stream"] = "auto",
    resize: bool = False,
    workers: int = 0,
    device: torch.device | str = "cpu",
    shown: bool = True,
) -> Batches:
    """Batches of a source; augment None: of unchanged images, for evaluation.

    Small images without costly augmentation are decoded once (`cache.decoded`); everything else is a DataLoader with timm's transforms.
    Raises UserError for images of the wrong size (see `recipe.Data.resize`) and for broken ones, naming them.
    """
    if len(source) == 0:
        raise UserError(f"{source.where}: holds no images")
    plain = augment is None or _sliceable(augment)
    if storage == "memory" and not plain:
        raise UserError("data.storage=memory knows only pad-and-crop and flip; use data.storage=stream for the other augmentations")
    if storage == "memory" or (storage == "auto" and plain and is_small(source)):
        channels, height, width = preprocess.input_size
        images = decoded(source, (height, width), channels, resize=resize, shown=shown)
        padding = augment.padding if augment and augment.crop == "pad" else 0
        return MemoryBatches(
            torch.from_numpy(images),
            torch.from_numpy(source.labels),
            preprocess.mean,
            preprocess.std,
            device,
            padding,
            augment.flip if augment else 0.0,
        )
    from esbnn_cls.data.stream import StreamBatches

    return StreamBatches(source, preprocess, augment, resize=resize, workers=workers, device=device)


def _sliceable(augment: Augment) -> bool:
    """Whether an augmentation is one that `MemoryBatches` knows (mixing of whole batches comes later and does not matter here)."""
    return augment.crop != "resized" and not (augment.color_jitter or augment.auto_augment or augment.erasing)
