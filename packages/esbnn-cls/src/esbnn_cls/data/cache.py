"""Small images, decoded once: uint8 arrays that are kept in a cache folder and mapped into memory.

50,000 JPEG of 32x32 take 3 to 4 s to decode and 154 MB; mapped, they are there at once, and processes share the pages.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import warnings
from pathlib import Path

from esbnn_cls.data.source import Source
from esbnn_core.errors import EsbnnError, UserError
from esbnn_core.files import remove_folder, write_folder
from esbnn_core.progress import Bar

import numpy as np
from PIL import Image

__all__ = ["cache_folder", "decoded", "is_small"]

_log = logging.getLogger(__name__)
_FORMAT = "1"  # of the cached files; part of the key
_LARGEST_SIDE, _LARGEST_BYTES = 64, 2 * 2**30


def cache_folder() -> Path:
    """Where decoded images are kept: `ESBNN_CACHE`, else `esbnn` in the user's cache folder (XDG)."""
    if os.environ.get("ESBNN_CACHE"):
        return Path(os.environ["ESBNN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esbnn"


def is_small(source: Source) -> bool:
    """Whether a source's images are to be kept decoded: the first one is at most 64x64, and all together at most 2 GiB."""
    if len(source) == 0:
        return False
    width, height = source.image(0).size
    return max(width, height) <= _LARGEST_SIDE and 3 * width * height * len(source) <= _LARGEST_BYTES


def decoded(source: Source, size: tuple[int, int], channels: int, *, resize: bool, shown: bool = True) -> np.ndarray:
    """All images of a source as uint8 [N, channels, H, W] with size = (H, W), from the cache where they are in it.

    resize: whether images of another size are resized (bicubic); otherwise such an image is a UserError. A cache that cannot be
    written costs a warning and the time to decode again, never the run.
    """
    key = repr((_FORMAT, source.fingerprint, size, channels, resize))
    folder = cache_folder() / "decoded" / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    shape = (len(source), channels, *size)
    array = _cached(folder / "images.npy", shape)
    if array is not None:
        return array
    array = _decode(source, shape, resize, shown)
    buffer = io.BytesIO()
    np.save(buffer, array)
    try:
        remove_folder(folder)  # there, but not usable
        write_folder(folder, {"images.npy": buffer.getvalue()})
    except EsbnnError as error:
        _log.warning("decoded images are not cached: %s", error)
        return array
    mapped = _cached(folder / "images.npy", shape)
    return array if mapped is None else mapped


def _cached(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The mapped array of a cache file, or None where there is none of the right shape."""
    try:
        # "c": private to the process when written to, shared while only read; torch wants an array that looks writable.
        array = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _decode(source: Source, shape: tuple[int, ...], resize: bool, shown: bool) -> np.ndarray:
    _, channels, height, width = shape
    array = np.empty(shape, np.uint8)
    with Bar(len(source), f"decoding {source.where}", unit="image", shown=shown) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's remarks about odd metadata
        for index in range(len(source)):
            image = source.image(index)
            if image.size != (width, height):
                if not resize:
                    raise UserError(
                        f"{source.describe(index)}: the image is {image.height}x{image.width}, the model wants {height}x{width}; "
                        "choose a model for this size, or resize the images (a recipe's data.resize=true, --resize of eval)"
                    )
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
            array[index] = pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]
            bar.advance()
    return array
