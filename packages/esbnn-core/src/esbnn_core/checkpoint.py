"""Model folders: `model.safetensors` and `config.json`, written atomically and read with errors that name the file. No pickles.

A training run's folder holds one more sub-folder, `training_state`, which its trainer reads and nobody else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esbnn_core.errors import UserError
from esbnn_core.files import write_folder

import torch
from torch import Tensor

__all__ = ["CONFIG", "MODEL", "encode_json", "encode_tensors", "load_json", "load_model", "load_tensors", "model_files", "save_model"]

MODEL = "model.safetensors"
CONFIG = "config.json"
_TIED = "tied"  # key of the header's metadata: names that share another tensor's memory -> that tensor's name


def save_model(folder: str | os.PathLike[str], state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a model folder, atomically.

    state_dict: name -> tensor of any device and layout; tensors that share their whole memory (tied weights) are stored once.
    config: JSON values: what is needed to build the model again and to prepare its input.
    Raises UserError where the folder exists already or cannot be written, RunError (path, bytes) where the disk is full.
    """
    write_folder(folder, model_files(state_dict, config))


def load_model(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a model folder: (state dict, config). Raises UserError, one line that names the file, for anything wrong with it."""
    base = Path(folder)
    if not base.is_dir():
        what = "is a file, a checkpoint is a folder" if base.exists() else "no such folder"
        raise UserError(f"{base}: {what}; wanted is a folder with {MODEL} and {CONFIG}")
    config = load_json(base / CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{base / CONFIG}: holds a {type(config).__name__}, wanted is an object")
    return load_tensors(base / MODEL), config


def model_files(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, bytes]:
    """The two files of a model folder as name -> contents, for writers that add files of their own."""
    return {MODEL: encode_tensors(state_dict), CONFIG: encode_json(config)}


def encode_json(value: Any) -> bytes:
    """A value as JSON text; floats round-trip exactly. NaN is refused: it has no place in JSON."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as one safetensors file: contiguous copies on the CPU, tied ones stored once."""
    from safetensors.torch import save

    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            tied[name] = seen[place]
            continue
        seen[place] = name
        stored[name] = tensor.detach().to("cpu").contiguous().clone()
    return save(stored, metadata={"format": "pt", _TIED: json.dumps(tied)})


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file whole. Raises UserError where it is missing, truncated or something else."""
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    _must_exist(file)
    try:
        with safe_open(file, framework="pt", device="cpu") as reader:
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 - not a mapping
            tied = json.loads((reader.metadata() or {}).get(_TIED, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: not a whole safetensors file, truncated or of another kind ({error})") from error
    for name, source in tied.items():
        tensors[name] = tensors[source]
    # Own memory: a mapped file must not be changed through a tensor, nor vanish under one when a checkpoint is pruned.
    return {name: torch.clone(tensor) for name, tensor in tensors.items()}


def load_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file. Raises UserError where it is missing, truncated or not JSON."""
    file = Path(path)
    _must_exist(file)
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a whole JSON file ({error})") from error


def _must_exist(file: Path) -> None:
    if not file.is_file():
        have = sorted(p.name for p in file.parent.iterdir())[:6] if file.parent.is_dir() else []
        raise UserError(f"{file}: no such file; the folder holds {', '.join(have) or 'nothing'}")
