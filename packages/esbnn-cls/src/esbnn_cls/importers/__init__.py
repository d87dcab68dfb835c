"""Importers of official checkpoints: read safely, say what matched, refuse what has no place."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esbnn_cls.importers._place import ImportReport, place
from esbnn_cls_catalog import CATALOG, METHODS
from esbnn_core.errors import UserError

import torch
from torch import Tensor, nn

__all__ = ["SOURCES", "ImportReport", "import_checkpoint", "load_official", "read_tensors"]

SOURCES: tuple[str, ...] = (*METHODS, "recu2stage", "fp")
"""Whose layout a file has: the methods by name, ReCU's two-stage network, the full-precision CIFAR ResNet-20."""
_ONE_CONVOLUTION = ("bireal", "reactnet", "recu2stage")


def load_official(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> ImportReport:
    """Load tensors under their official names into a network, block, unit or layer of ours; see `place` for errors."""
    if source not in SOURCES:
        raise UserError(f"unknown source {source!r}; known: {', '.join(SOURCES)}")
    return place(module, tensors, source, one_convolution=source in _ONE_CONVOLUTION)


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint file: plain, or nested under `state_dict`, `model` or `net`; safetensors too.

    Read with `weights_only`, so nothing in the file is executed. Raises `UserError` for a missing, truncated or foreign file.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            payload: Any = load_file(path)
        else:
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a readable checkpoint (truncated, or of another kind): {str(error).splitlines()[0]}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise UserError(f"{path}: not a readable safetensors file: {error}") from error
    for key in ("state_dict", "model", "net"):
        if isinstance(payload, Mapping) and isinstance(payload.get(key), Mapping):
            payload = payload[key]
    if not isinstance(payload, Mapping) or not payload or not all(isinstance(v, Tensor) for v in payload.values()):
        raise UserError(f"{path}: holds no state dict of tensors")
    return {str(k).removeprefix("module."): v for k, v in payload.items()}


def resolve_arch(arch: str, source: str) -> str:
    """A registered name from `--arch` and `--from`: the full name, or the architecture alone."""
    for name in (arch, f"{arch}_{source}"):
        if name in CATALOG.names:
            return name
    known = sorted(n.removesuffix(f"_{source}") for n in CATALOG.names if n.endswith(f"_{source}"))
    raise UserError(f"no architecture {arch!r} for {source!r}; known: {', '.join(known)}")


def import_checkpoint(file: str | Path, source: str, arch: str, out: str | Path, **model_args: Any) -> ImportReport:
    """Read an official checkpoint and write a checkpoint folder of ours (weights, config.json).

    file: .pth or .safetensors. source: one of `SOURCES`. arch: `resnet20_cifar` or a full model name. out: folder to write.
    """
    from esbnn_cls.data.preprocess import Preprocess
    from esbnn_cls.modelfolder import create, make_config, save_classifier

    if source not in SOURCES:
        raise UserError(f"unknown source {source!r}; known: {', '.join(SOURCES)}")
    name = resolve_arch(arch, source)
    tensors = read_tensors(file)
    classes = next((t.shape[0] for k, t in tensors.items() if k in ("linear.weight", "fc.weight")), None)
    if classes is not None:
        model_args.setdefault("num_classes", int(classes))
    model = create(name, model_args)
    try:
        report = load_official(model, tensors, source)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    config = make_config(name, model_args, Preprocess.of_model(model), imported={"from": source, "file": Path(file).name})
    save_classifier(out, model, config)
    return report
