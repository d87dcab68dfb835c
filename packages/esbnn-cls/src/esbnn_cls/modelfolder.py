"""Checkpoints of classifiers: what config.json says, and how a model is built from it again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import esbnn_cls.models  # noqa: F401  (registers our models with timm)
from esbnn_cls.data.preprocess import Preprocess
from esbnn_core.checkpoint import CONFIG, MODEL, load_model, save_model
from esbnn_core.errors import EsbnnError, UserError
from esbnn_core.training import binary_layers

import timm
import torch
from torch import nn

__all__ = ["create", "load_classifier", "make_config", "save_classifier", "versions"]


def make_config(
    arch: str,
    model_args: Mapping[str, Any],
    preprocess: Preprocess,
    class_names: Sequence[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """The contents of config.json. arch, model_args: what `timm.create_model` takes. more: anything to know later (source, epoch ...)."""
    return {
        "task": "classification",
        "arch": arch,
        "model_args": dict(model_args),
        "preprocessing": preprocess.to_config(),
        "class_names": list(class_names),
        "versions": dict(versions()),
        **more,
    }


def save_classifier(folder: str | os.PathLike[str], model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write a model folder (model.safetensors, config.json), atomically. A folder that exists already is a UserError."""
    save_model(folder, model.state_dict(), config)


def load_classifier(folder: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Build a model from its folder: (model in evaluation mode, config).

    Raises UserError, naming the file, where the folder is not a checkpoint of a classifier or its weights do not fit.
    """
    state, config = load_model(folder)
    where = Path(folder)
    if not isinstance(config.get("arch"), str) or not isinstance(config.get("model_args"), dict):
        raise UserError(f"{where / CONFIG}: has no `arch` and `model_args`: not a checkpoint of this package")
    model = create(config["arch"], config["model_args"], where=str(where / CONFIG))
    fit(model, state, str(where / MODEL))
    for _, layer in binary_layers(model):
        layer.weight_mode = config.get("weight_mode", "binary")
    return model.eval(), config


def create(arch: str, model_args: Mapping[str, Any], where: str | None = None) -> nn.Module:
    """`timm.create_model` with errors of one line; the nearest names are given for an unknown architecture."""
    prefix = f"{where}: " if where else ""
    if not timm.is_model(arch):
        import difflib

        near = difflib.get_close_matches(arch, timm.list_models(), n=3)
        raise UserError(f"{prefix}no model is called {arch!r}; the nearest are {', '.join(near) or 'none'} (timm.list_models() lists all)")
    try:
        return timm.create_model(arch, **model_args)
    except EsbnnError as error:
        raise type(error)(f"{prefix}{arch}: {error}") from error
    except (TypeError, ValueError) as error:  # timm hands unknown arguments on until some constructor refuses them
        raise UserError(f"{prefix}{arch} cannot be built with {dict(model_args)}: {error}") from error


def fit(model: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Load a state dict strictly; what is missing, left over or of another shape is one UserError that names the file."""
    own = model.state_dict()
    missing, extra = [k for k in own if k not in state], [k for k in state if k not in own]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or extra or shapes:
        parts = [f"{label} {_some(keys)}" for label, keys in (("missing", missing), ("left over", extra)) if keys]
        parts += [f"{key} is {list(state[key].shape)}, the model has {list(own[key].shape)}" for key in shapes[:2]]
        raise UserError(f"{where}: the weights do not fit the model: {'; '.join(parts)}")
    model.load_state_dict(dict(state))


@cache
def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    found = {}
    for name in ("esbnn-core", "esbnn-cls", "torch", "timm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
