"""Folders of parquet files in Hugging Face's layout, read with pyarrow: `train-00000.parquet`, `test/0.parquet`, `data/train-*` ...

Image and label columns are found by their feature type, which `datasets` keeps in the file's metadata; files without it are read by
their schema. Nothing has to be declared, no cache is written.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esbnn_cls.data.source import Source, decode_bytes, fingerprint
from esbnn_core.errors import UserError

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ParquetSource", "find_columns", "parquet_files"]

_IN_MEMORY = 4 * 2**30  # bytes of parquet that are read whole; more than this goes through `datasets`, which maps files
SPLIT_NAMES = {"validation": ("validation", "val", "valid", "dev"), "val": ("val", "validation", "valid", "dev")}


def parquet_files(folder: Path) -> list[Path]:
    """All parquet files of a folder: its own, those of `data/`, and those of sub-folders named by a split."""
    return sorted(p for p in folder.rglob("*.parquet") if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def files_of_split(folder: Path, split: str) -> list[Path]:
    """The files of one split, told by file name or by the folder that they are in. Raises UserError that lists the splits found."""
    names: dict[str, list[Path]] = {}
    for file in parquet_files(folder):
        relative = file.relative_to(folder)
        word = re.split(r"[-_.]", relative.name)[0]
        if len(relative.parts) > 1 and relative.parts[-2] not in ("data", "default", "plain_text"):
            word = relative.parts[-2]
        names.setdefault(word.lower(), []).append(file)
    for name in SPLIT_NAMES.get(split, (split,)):
        if name in names:
            return names[name]
    raise UserError(f"{folder}: no split {split!r}; its parquet files hold {', '.join(sorted(names)) or 'nothing'}")


def find_columns(schema: pa.Schema, where: str) -> tuple[str, str, tuple[str, ...] | None]:
    """(image column, label column, label names or None) of a parquet schema. Raises UserError that lists the columns."""
    import pyarrow.types as kinds

    features: dict[str, Any] = {}
    if schema.metadata and b"huggingface" in schema.metadata:
        features = json.loads(schema.metadata[b"huggingface"]).get("info", {}).get("features", {})
    images = [name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "Image"]
    labels = [name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"]
    names = tuple(features[labels[0]].get("names") or ()) if labels else ()

    def encoded(kind: pa.DataType) -> bool:
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    if not images:
        for field in schema:
            nested = kinds.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
            if nested or encoded(field.type):
                images.append(field.name)
    if not labels:
        labels = [field.name for field in schema if kinds.is_integer(field.type)]
        labels.sort(key=lambda name: name not in ("label", "labels", "fine_label", "target", "class"))
    if not images or not labels:
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise UserError(f"{where}: found no {'label' if images else 'image'} column among {found}")
    return images[0], labels[0], names or None


class ParquetSource(Source):
    """One split of a parquet folder."""

    def __init__(self, folder: Path, split: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.where = str(folder)
        self._folder = folder
        self._files = files_of_split(folder, split)
        try:
            schema = pq.read_schema(self._files[0])
            image, label, names = find_columns(schema, str(self._files[0]))
            tables = [pq.read_table(file, columns=[image, label]) for file in self._files]
            table = pa.concat_tables(tables)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self._files[0]}: not a whole parquet file, or its columns differ ({error})") from error
        self._chunks: list[Any] = table.column(image).chunks
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self._chunks])
        self.labels = table.column(label).to_numpy().astype(np.int64)
        self.class_names = names or tuple(str(number) for number in range(int(self.labels.max(initial=-1)) + 1))
        self.fingerprint = fingerprint(self._files, image, label)

    @staticmethod
    def fits(folder: Path, split: str) -> bool:
        """Whether the split is small enough to be read whole."""
        return sum(file.stat().st_size for file in files_of_split(folder, split)) <= _IN_MEMORY

    def _row(self, index: int) -> Any:
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._chunks[chunk][index - int(self._starts[chunk])].as_py()

    def _open(self, index: int) -> Image.Image:
        value = self._row(index)
        if isinstance(value, dict):
            if value.get("bytes") is None:
                return decode_bytes((self._folder / str(value["path"])).read_bytes())
            value = value["bytes"]
        return decode_bytes(value)

    def describe(self, index: int) -> str:
        value = self._row(index)
        name = value.get("path") if isinstance(value, dict) else None
        return f"{self.where}: row {index}" + (f" ({name})" if name else "")
