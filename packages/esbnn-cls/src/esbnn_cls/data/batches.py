"""Batches from decoded images in memory: whole batches are cropped, flipped and normalised by tensor slicing (0.5 s an epoch of CIFAR)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from esbnn_core.rng import generator

import torch
from torch import Tensor

__all__ = ["Geometry", "MemoryBatches", "epoch_order"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an epoch is cut: `batch` images an optimizer step over all processes, in `accumulation` parts, of which each of `world`
    processes takes one contiguous piece of `micro` images."""

    batch: int
    accumulation: int = 1
    world: int = 1
    rank: int = 0

    @property
    def micro(self) -> int:
        return self.batch // (self.accumulation * self.world)

    def pieces(self) -> list[slice]:
        """This process's parts of a step's batch, in order."""
        starts = [part * self.micro * self.world + self.rank * self.micro for part in range(self.accumulation)]
        return [slice(start, start + self.micro) for start in starts]


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch's images, int64 [images]: a function of seed and epoch alone."""
    return torch.randperm(images, generator=generator(seed, "order", epoch))


class MemoryBatches:
    """Batches of decoded images.

    images: uint8 [N, C, H, W]. labels: int64 [N]. mean, std: of the channels, of values in [0, 1]. Batches are float32 on `device`.
    padding: zeros around a training image before a random crop to its own size. flip: probability of a horizontal flip.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        padding: int = 0,
        flip: float = 0.0,
    ) -> None:
        self.padding, self.flip = padding, flip
        self.device = torch.device(device)
        self.images, self.labels = images.to(self.device), labels.to(self.device)
        self._mean, self._std = (torch.tensor(v, dtype=torch.float32, device=self.device).view(1, -1, 1, 1) for v in (mean, std))

    def __len__(self) -> int:
        return len(self.labels)

    def evaluation(self, batch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """All images in order, unchanged but for the normalisation; of several processes each takes one contiguous share."""
        bounds = [len(self) * r // world for r in range(world + 1)]
        for start in range(bounds[rank], bounds[rank + 1], batch):
            stop = min(start + batch, bounds[rank + 1])
            yield self._normalise(self.images[start:stop]), self.labels[start:stop]

    def training(self, geometry: Geometry, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The parts of an epoch's steps from step `start` on; the last, smaller batch is dropped.

        Crops and flips are drawn for a whole step's batch from (seed, epoch, step): the same pixels whatever the accumulation and
        the number of processes.
        """
        order = epoch_order(len(self), seed, epoch)
        for step in range(start, len(self) // geometry.batch):
            rng = generator(seed, "augment", epoch, step)
            shifts = torch.randint(0, 2 * self.padding + 1, (geometry.batch, 2), generator=rng)
            flips = torch.rand(geometry.batch, generator=rng) < self.flip
            chosen = order[step * geometry.batch : (step + 1) * geometry.batch]
            for piece in geometry.pieces():
                index = chosen[piece].to(self.device)
                x = _augment(self.images[index], shifts[piece].to(self.device), flips[piece].to(self.device), self.padding)
                yield self._normalise(x), self.labels[index]

    def _normalise(self, pixels: Tensor) -> Tensor:
        # torchvision's ToTensor and Normalize, operation by operation: the same floats, so the same bits at thresholds.
        return pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)


def _augment(x: Tensor, shifts: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Crop every image of a uint8 batch [B, C, H, W] at its own shift inside a border of zeros, and flip the marked ones."""
    if padding:
        height, width = x.shape[-2:]
        windows = torch.nn.functional.pad(x, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        x = windows[torch.arange(len(x), device=x.device), :, shifts[:, 0], shifts[:, 1]]
    return torch.where(flips.view(-1, 1, 1, 1), x.flip(3), x)
