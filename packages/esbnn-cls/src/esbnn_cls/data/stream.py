"""Batches that are decoded anew every epoch, with timm's transforms: large images and costly augmentation.

Every sample is transformed under its own key (seed, epoch, index), so neither the number of workers nor what they prefetched, nor the
point where a run was resumed, changes a pixel.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from esbnn_cls.data.batches import Geometry, epoch_order
from esbnn_cls.data.preprocess import Preprocess
from esbnn_cls.data.source import Source
from esbnn_cls.recipe import Augment
from esbnn_core.errors import EsbnnError, UserError
from esbnn_core.rng import generator, keyed, seed_all

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

__all__ = ["StreamBatches", "eval_transform", "train_transform"]

Transform = Callable[[Image.Image], Tensor]


def train_transform(preprocess: Preprocess, augment: Augment) -> Transform:
    """The transform of training images: PIL image -> normalised float32 [C, H, W]."""
    from timm.data import create_transform  # type: ignore[attr-defined]  # timm re-exports without saying so
    from timm.data.transforms import str_to_interp_mode
    from torchvision import transforms

    if augment.crop == "resized":
        made: Transform = create_transform(
            preprocess.input_size,
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.flip,
            color_jitter=augment.color_jitter,  # type: ignore[arg-type]  # None is off
            auto_augment=augment.auto_augment,
            interpolation=preprocess.interpolation,
            mean=preprocess.mean,
            std=preprocess.std,
            re_prob=augment.erasing,
            re_mode="pixel",
        )
        return made
    size = preprocess.input_size[1:]
    steps: list[Any] = [transforms.Resize(size, str_to_interp_mode(preprocess.interpolation))]
    if augment.crop == "pad":
        steps.append(transforms.RandomCrop(size, augment.padding))
    steps.append(transforms.RandomHorizontalFlip(augment.flip))
    if augment.auto_augment:
        from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

        fill = {"translate_const": int(min(size) * 0.45), "img_mean": tuple(round(255 * m) for m in preprocess.mean)}
        kinds = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
        steps.append(kinds.get(augment.auto_augment.split("-")[0], auto_augment_transform)(augment.auto_augment, fill))
    elif augment.color_jitter:
        steps.append(transforms.ColorJitter(*augment.color_jitter))
    steps += [transforms.ToTensor(), transforms.Normalize(preprocess.mean, preprocess.std)]
    if augment.erasing:
        from timm.data.random_erasing import RandomErasing

        steps.append(RandomErasing(augment.erasing, mode="pixel", device="cpu"))
    composed: Transform = transforms.Compose(steps)
    return composed


def eval_transform(preprocess: Preprocess) -> Transform:
    """The transform of evaluation: resize, centre crop, normalise."""
    from timm.data import create_transform  # type: ignore[attr-defined]  # timm re-exports without saying so

    made: Transform = create_transform(
        preprocess.input_size,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
    )
    return made


class _Samples(Dataset[Any]):
    """Samples by (epoch, index), each under its own key; a broken image comes as the error, to be raised where it is one line."""

    def __init__(self, source: Source, transform: Transform, channels: int, seed: int, exact: tuple[int, int] | None) -> None:
        self.source, self.transform, self.seed, self.exact = source, transform, seed, exact
        self.mode = "RGB" if channels == 3 else "L"

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | EsbnnError:
        epoch, index = key
        try:
            image = self.source.image(index)
            if self.exact is not None and (image.height, image.width) != self.exact:
                raise UserError(
                    f"{self.source.describe(index)}: the image is {image.height}x{image.width}, wanted is {self.exact[0]}x{self.exact[1]} "
                    "for augment.crop=pad; resize the images with data.resize=true or use augment.crop=resized"
                )
            image = image.convert(self.mode)
            if get_worker_info() is None:
                with keyed(self.seed, "sample", epoch, index):
                    return self.transform(image), int(self.source.labels[index])
            seed_all(self.seed, "sample", epoch, index)
            return self.transform(image), int(self.source.labels[index])
        except EsbnnError as error:
            return error


class StreamBatches:
    """See `loaders.Batches`. augment None: evaluation's transforms. workers: processes; the batches do not depend on it."""

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        augment: Augment | None,
        *,
        resize: bool = False,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source, self.preprocess, self.augment = source, preprocess, augment
        self.resize, self.workers, self.device = resize, workers, torch.device(device)

    def __len__(self) -> int:
        return len(self.source)

    def training(self, geometry: Geometry, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The parts of an epoch's steps from step `start` on; the last, smaller batch is dropped."""
        order = epoch_order(len(self), seed, epoch)
        plan = []
        for step in range(start, len(self) // geometry.batch):
            chosen = order[step * geometry.batch : (step + 1) * geometry.batch]
            plan += [[(epoch, index) for index in chosen[piece].tolist()] for piece in geometry.pieces()]
        augment = self.augment or Augment(crop="none", flip=0.0)
        exact = None if augment.crop == "resized" or self.resize else self.preprocess.input_size[1:]
        return self._load(plan, train_transform(self.preprocess, augment), seed, exact)

    def evaluation(self, batch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's contiguous share of all images, in order."""
        first, last = len(self) * rank // world, len(self) * (rank + 1) // world
        plan = [[(0, index) for index in range(start, min(start + batch, last))] for start in range(first, last, batch)]
        return self._load(plan, eval_transform(self.preprocess), 0, None)

    def _load(
        self, plan: list[list[tuple[int, int]]], transform: Transform, seed: int, exact: tuple[int, int] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        samples = _Samples(self.source, transform, self.preprocess.input_size[0], seed, exact)
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=plan,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=partial(_begin_worker, parent=os.getpid()),
            # An own generator: making an iterator would otherwise draw from the global stream.
            generator=generator(seed, "loader"),
        )
        for item in loader:
            if isinstance(item, EsbnnError):
                raise item
            x, labels = item
            yield x.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def _collate(items: list[Any]) -> Any:
    for item in items:
        if isinstance(item, EsbnnError):
            return item
    return torch.stack([x for x, _ in items]), torch.tensor([label for _, label in items], dtype=torch.int64)


def _begin_worker(number: int, *, parent: int) -> None:
    _end_with(parent)
    torch.set_num_threads(1)
    info: Any = get_worker_info()
    reopen = getattr(info.dataset.source, "reopen", None)
    if reopen is not None:
        reopen()


def _end_with(parent: int) -> None:
    """See to it that this process does not outlive its parent.

    torch's workers ask now and then whether their parent has changed, but remember it only once they run: one whose parent is killed
    before that waits for ever, and holds the terminal's or the log's pipe open.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
