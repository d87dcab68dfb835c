"""Image folders, tar archives and torchvision's CIFAR, listed by timm's and torchvision's readers."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any, ClassVar

from esbnn_cls.data.source import Source, decode_bytes, fingerprint
from esbnn_core.errors import UserError

import numpy as np
from PIL import Image

__all__ = ["CifarSource", "FolderSource", "TarSource"]

_ALIASES = {
    "train": ("train", "training"),
    "test": ("test", "val", "validation", "valid", "eval"),
    "val": ("val", "validation", "valid", "eval", "test"),
    "validation": ("validation", "val", "valid", "eval", "test"),
}


def _names(split: str) -> tuple[str, ...]:
    return _ALIASES.get(split, (split,))


class FolderSource(Source):
    """Images as FOLDER/SPLIT/CLASS/*.jpg (and other formats); classes are the folders' names in natural order."""

    def __init__(self, folder: Path, split: str) -> None:
        from timm.data.readers.reader_image_folder import find_images_and_targets

        base = next((folder / name for name in _names(split) if (folder / name).is_dir()), None)
        if base is None:
            have = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "nothing"
            raise UserError(f"{folder}: no split {split!r}: no folder {split}/ with a folder of images for each class (it holds {have})")
        found, classes = find_images_and_targets(str(base))
        if not found:
            raise UserError(f"{base}: holds no images")
        self.where = str(base)
        self._files = [Path(file) for file, _ in found]
        self.labels = np.array([label for _, label in found], dtype=np.int64)
        self.class_names = tuple(sorted(classes, key=classes.__getitem__))
        self.fingerprint = fingerprint(self._files, *(str(file.relative_to(base)) for file in self._files))

    def _open(self, index: int) -> Image.Image:
        image = Image.open(self._files[index])
        image.load()
        return image

    def describe(self, index: int) -> str:
        return str(self._files[index])


class TarSource(Source):
    """Images in tar archives: one archive, a folder with SPLIT.tar, or a folder SPLIT/ of archives; classes are the innermost folders."""

    def __init__(self, path: Path, split: str) -> None:
        from timm.data.readers.reader_image_in_tar import ReaderImageInTar

        root = _tar_root(path, split)
        assert root is not None  # `recognises` was asked first
        try:
            # timm would keep its list of members as a pickle beside large archives: no.
            self._reader: Any = ReaderImageInTar(str(root), cache_tarinfo=False)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{root}: not a whole tar archive ({error})") from error
        except ValueError as error:
            raise UserError(f"{root}: the archive holds no images") from error
        self.where = str(root)
        self.labels = np.asarray(self._reader.targets, dtype=np.int64)
        names = self._reader.class_idx_to_name
        self.class_names = tuple(names[index] for index in range(len(names)))
        self.fingerprint = fingerprint([root] if root.is_file() else sorted(root.glob("*.tar")))
        self._state = self._reader.tar_state

    @staticmethod
    def recognises(path: Path, split: str) -> bool:
        return _tar_root(path, split) is not None

    def _open(self, index: int) -> Image.Image:
        stream, _ = self._reader[index]
        return decode_bytes(stream.read())

    def describe(self, index: int) -> str:
        return f"{self.where}: {self._reader.filename(index)}"

    def reopen(self) -> None:
        """Forget open archives; called in a worker process, whose inherited file positions belong to its parent."""
        states = [self._state] if self._reader.root_is_tar else list(self._state.values())
        for state in states:
            state.tf = None
            for child in state.children.values():
                child.tf = None


def _tar_root(path: Path, split: str) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".tar" else None
    for name in _names(split):
        if (path / f"{name}.tar").is_file():
            return path / f"{name}.tar"
        if (path / name).is_dir() and any((path / name).glob("*.tar")):
            return path / name
    return None


class CifarSource(Source):
    """CIFAR-10 or CIFAR-100 in its original batches, as torchvision keeps them (checked against its checksums before it is unpickled)."""

    _FOLDERS: ClassVar = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}

    def __init__(self, path: Path, split: str) -> None:
        import torchvision

        folder = self._folder(path)
        assert folder is not None
        if split not in ("train", *_names("test")):
            raise UserError(f"{path}: no split {split!r}; CIFAR has train and test")
        kind = getattr(torchvision.datasets, self._FOLDERS[folder.name])
        try:
            data: Any = kind(str(folder.parent), train=split == "train", download=False)
        except RuntimeError as error:
            raise UserError(f"{folder}: not the whole original {self._FOLDERS[folder.name]} ({error})") from error
        self.where = str(folder)
        self._pixels: np.ndarray = data.data
        self.labels = np.asarray(data.targets, dtype=np.int64)
        self.class_names = tuple(data.classes)
        self.fingerprint = fingerprint(sorted(p for p in folder.iterdir() if p.is_file()), split)

    @classmethod
    def _folder(cls, path: Path) -> Path | None:
        found = [path, *(path / name for name in cls._FOLDERS)]
        return next((folder for folder in found if folder.name in cls._FOLDERS and folder.is_dir()), None)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return cls._folder(path) is not None

    def _open(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])

    def describe(self, index: int) -> str:
        return f"{self.where}: image {index}"
