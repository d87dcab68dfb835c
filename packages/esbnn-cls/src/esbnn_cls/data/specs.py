"""From what the user writes (`--data ...`) to a source: recognised by what is there, without prefixes."""

from __future__ import annotations

from pathlib import Path

from esbnn_cls.data.parquet import ParquetSource, parquet_files
from esbnn_cls.data.source import Source
from esbnn_core.errors import UserError

__all__ = ["open_source"]

_WANTED = "a folder of images, parquet files or CIFAR batches, a tar archive, hfds/NAME (Hugging Face hub) or digits"


def open_source(spec: str | Path | None, split: str) -> Source:
    """The labelled images of one split.

    spec: a folder of parquet files, of images (SPLIT/CLASS/*), of torchvision's CIFAR; a tar archive (or a folder of SPLIT.tar);
    `hfds/NAME` for a dataset of the Hugging Face hub; `digits` for those that scikit-learn ships.
    Raises UserError for a dataset or split that is not there, saying what was looked for.
    """
    if spec is None or not str(spec):
        raise UserError(f"no dataset is given; use --data with {_WANTED}")
    text = str(spec)
    if text == "digits":
        from esbnn_cls.data.known import DigitsSource

        return DigitsSource(split)
    if text.startswith("hfds/"):
        from esbnn_cls.data.known import HubSource

        return HubSource(text.removeprefix("hfds/"), split)
    path = Path(text).expanduser()
    if not path.exists():
        raise UserError(f"{path}: no such dataset; wanted is {_WANTED}")
    if path.is_file() and path.suffix != ".tar":
        raise UserError(f"{path}: this file is no dataset; wanted is {_WANTED}")
    if path.is_dir() and parquet_files(path):
        from esbnn_cls.data.known import HubSource

        return ParquetSource(path, split) if ParquetSource.fits(path, split) else HubSource(str(path), split)
    from esbnn_cls.data.folders import CifarSource, FolderSource, TarSource

    if path.is_dir() and CifarSource.recognises(path):
        return CifarSource(path, split)
    if TarSource.recognises(path, split):
        return TarSource(path, split)
    return FolderSource(path, split)
