"""A source: labelled images of one split, wherever they come from, in a fixed order."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from esbnn_core.errors import EsbnnError, UserError

import numpy as np
from PIL import Image

__all__ = ["Source", "decode_bytes", "fingerprint"]


class Source(ABC):
    """Labelled images of one split.

    where: the folder, file or name that the user gave, for messages. labels: int64 [N]. class_names: one text a class.
    fingerprint: changes whenever the contents may have changed; the cache of decoded images is keyed by it.
    """

    where: str
    labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Image `index`, decoded. Raises UserError that names the file where it is broken: never a silent replacement."""
        try:
            return self._open(index)
        except EsbnnError:
            raise
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
            raise UserError(f"{self.describe(index)}: not an image that can be decoded ({error}); repair or remove it") from error

    @abstractmethod
    def _open(self, index: int) -> Image.Image:
        """Decode image `index`; errors are whatever the decoder raises."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Where image `index` is kept: a path, or a file and the row in it."""


def decode_bytes(data: bytes) -> Image.Image:
    """An encoded image (JPEG, PNG ...) as a loaded PIL image; truncated data is an error."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def fingerprint(files: Iterable[Path], *extra: str) -> str:
    """A hash over names, sizes, times and both ends of files: cheap, and different after any ordinary change.

    The ends are read only of the first 64 files; beyond that (image folders) names, sizes and times have to do.
    """
    digest = hashlib.blake2b(digest_size=16)
    for text in extra:
        digest.update(text.encode() + b"\0")
    for number, file in enumerate(files):
        stat = file.stat()
        digest.update(f"{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        if number < 64:
            with open(file, "rb") as handle:
                digest.update(handle.read(65536))
                handle.seek(max(0, stat.st_size - 65536))
                digest.update(handle.read(65536))
    return digest.hexdigest()
