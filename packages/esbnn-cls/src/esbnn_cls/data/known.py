"""Datasets by name: the digits that scikit-learn ships, and the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from esbnn_cls.data.cache import cache_folder
from esbnn_cls.data.source import Source, decode_bytes
from esbnn_core.errors import UserError
from esbnn_core.rng import generator

import numpy as np
import torch
from PIL import Image

__all__ = ["DigitsSource", "HubSource"]


class DigitsSource(Source):
    """1,797 grey images of handwritten digits, 8x8, embedded in scikit-learn (UCI, E. Alpaydin and C. Kaynak 1998).

    They come without a split: 1,437 are for training and 360 for testing, in a fixed mixed order.
    """

    TRAIN = 1437

    def __init__(self, split: str) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UserError("the digits come with scikit-learn: pip install scikit-learn") from error
        if split not in ("train", "test", "val", "validation"):
            raise UserError(f"digits: no split {split!r}; there are train and test")
        data: Any = load_digits()
        order = torch.randperm(len(data.target), generator=generator("digits", "split")).numpy()
        chosen = order[: self.TRAIN] if split == "train" else order[self.TRAIN :]
        # 17 levels, 0 to 16, spread over a byte.
        self._pixels = np.round(data.images[chosen] * (255 / 16)).astype(np.uint8)
        self.labels = np.asarray(data.target[chosen], dtype=np.int64)
        self.class_names = tuple(str(name) for name in data.target_names)
        self.where = "digits"
        self.fingerprint = f"digits {split} {self._pixels.sum()}"

    def _open(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])

    def describe(self, index: int) -> str:
        return f"digits: image {index}"


class HubSource(Source):
    """A dataset of the Hugging Face hub, or a parquet folder that is too large to be read whole, through `datasets` (mapped files)."""

    def __init__(self, name: str, split: str) -> None:
        import datasets

        try:
            data: Any = datasets.load_dataset(name, split=split, cache_dir=str(cache_folder() / "hub"))
        except Exception as error:  # hub and builders raise many kinds: network, missing repository, unknown split
            raise UserError(f"hfds/{name}, split {split!r}: cannot be loaded ({type(error).__name__}: {error})") from error
        image = next((key for key, kind in data.features.items() if isinstance(kind, datasets.Image)), None)
        label = next((key for key, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)), None)
        if image is None or label is None:
            found = ", ".join(f"{key}: {kind}" for key, kind in data.features.items())
            raise UserError(f"hfds/{name}: has no {'label' if image else 'image'} column among {found}")
        self.where, self._image = f"hfds/{name}", image
        self.class_names = tuple(data.features[label].names)
        self.labels = np.asarray(data.with_format("numpy")[label][:], dtype=np.int64)
        self._data = data.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        # `datasets` hashes the data and everything that was done to it.
        self.fingerprint = f"hub {data._fingerprint} {split}"

    def _open(self, index: int) -> Image.Image:
        value = self._data[index][self._image]
        if value.get("bytes") is None:
            image = Image.open(value["path"])
            image.load()
            return image
        return decode_bytes(value["bytes"])

    def describe(self, index: int) -> str:
        path = self._data[index][self._image].get("path")
        return f"{self.where}: row {index}" + (f" ({path})" if path else "")
