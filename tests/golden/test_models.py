"""Golden whole networks: official weights, made from their names, go through the importer; features and logits must agree."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import esbnn_cls.models  # noqa: F401  (registers the networks)
from esbnn_cls.importers import load_official

import numpy as np
import pytest
import timm
import torch
from harness import NotBuilt, folder, model_files, synthesise
from torch import Tensor, nn

pytestmark = pytest.mark.golden

TOLERANCE = 1e-4
"""Of the largest entry: a straightforward implementation reaches 1e-5; more would mean a flipped sign."""

METHOD_OF = {
    "huawei-noah/Efficient-Computing": "adabin",
    "liuzechun/Bi-Real-net": "bireal",
    "itayhubara/BinaryNet.pytorch": "bnn",
    "htqin/IR-Net": "irnet",
    "lmbxmu/RBNN": "rbnn",
    "z-hXu/ReCU": "recu",
    "DravenALG/ReSTE": "reste",
    "lmbxmu/SiMaN": "siman",
    "jiecaoyu/XNOR-Net-PyTorch": "xnor",
    "liuzechun/ReActNet": "reactnet",
}


def our_name(meta: dict[str, Any]) -> tuple[str, str]:
    """(registered model, importer's source) of an official network."""
    official = meta["official"]
    text = f"{official['repo']} {official['file']} {official['name']}" if isinstance(official, dict) else official
    method = METHOD_OF.get(text.split("@")[0].split(" ")[0])
    arch = meta["arch"].lower()
    if method is None or "mobilenet" in text:
        raise NotBuilt(f"{text.split(' ')[0]} {arch}")
    if arch == "nin":
        return "nin_cifar_xnor", "xnor"
    if "two-stage" in text:
        return "resnet18_recu2stage", "recu2stage"
    if arch == "resnet_binary":
        return "resnet20_cifar_bnn", "bnn"
    digits = next((d for d in ("18", "20", "34") if d in arch), None)
    imagenet = "imagenet" in text.lower() or method in ("bireal", "reactnet")
    if digits is None:
        raise NotBuilt(f"{text.split(' ')[0]} {arch}")
    name = f"resnet{digits}{'bireal' if 'bireal' in arch and not imagenet else ''}{'' if imagenet else '_cifar'}_{method}"
    return name, method


def official_state(meta: dict[str, Any], arrays: Any) -> dict[str, Tensor]:
    stored = {k.removeprefix("state."): torch.from_numpy(np.asarray(arrays[k])) for k in arrays.files if k.startswith("state.")}
    if stored:
        return stored
    state, crc = {}, 0
    for key, shape, rule, *args in meta["state"]:
        array = synthesise(meta, key, tuple(shape), rule, *args)
        if key.endswith("num_batches_tracked"):
            array = array.astype(np.int64)
        crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
        state[key] = torch.from_numpy(np.ascontiguousarray(array))
    rules = {entry[2] for entry in meta["state"]}
    if "state_crc32" in meta and "orthogonal" not in rules:  # QR may differ in the last bit between LAPACK builds
        assert crc == meta["state_crc32"], "the synthesised weights are not those of the vectors"
    return state


def official_input(meta: dict[str, Any], arrays: Any) -> Tensor:
    if "in.x" in arrays.files:
        return torch.from_numpy(np.asarray(arrays["in.x"]))
    if "in.x_int8" in arrays.files:
        return (torch.from_numpy(np.asarray(arrays["in.x_int8"])).float() + 0.5) / 64
    x = synthesise(meta, "in.x", tuple(meta.get("input_shape", meta.get("input"))), "normal", 1.0)
    if "in_x_crc32" in meta:
        assert zlib.crc32(x.tobytes()) == meta["in_x_crc32"]
    return torch.from_numpy(x)


def build(meta: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    name, source = our_name(meta)
    args: dict[str, Any] = {"num_classes": meta.get("num_classes", 10)}
    if "depth" in meta.get("args", {}):
        args["depths"] = ((meta["args"]["depth"] - 2) // 6,) * 3
    model = timm.create_model(name, **args)
    load_official(model, state, source)
    return model.eval()


@pytest.fixture(params=model_files(folder()), ids=lambda p: p.stem)
def file(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_network(file: Path) -> None:
    with np.load(file) as arrays:
        meta = json.loads(str(arrays["meta"]))
        try:
            our_name({"arch": file.stem, **meta})
        except (NotBuilt, KeyError) as what:
            pytest.skip(f"not built: {what}")
        if "state" not in meta and not any(k.startswith("state.") for k in arrays.files):
            pytest.skip("not built: a network without stored or described weights")
        model = build({"arch": file.stem, **meta}, official_state(meta, arrays))
        x = official_input(meta, arrays)
        want = {k.removeprefix("out."): torch.from_numpy(np.asarray(arrays[k])) for k in arrays.files if k.startswith("out.")}
    seen: dict[str, Tensor] = {}
    # What the vectors call "stem" is the first norm's output, the activation's or the whole stem's, as the official code had it.
    stem: list[Tensor] = []
    for part in ("stem.norm", "stem.act", "stem"):
        if hasattr(model, "stem"):
            model.get_submodule(part).register_forward_hook(lambda m, i, o: stem.append(o))
    for i, stage in enumerate(getattr(model, "stages", []), 1):
        stage.register_forward_hook(lambda m, a, o, i=i: seen.update({f"stage{i}": o}))
    with torch.no_grad():
        logits = model(x)
    # Some official networks end in a LogSoftmax; ours return logits.
    text = json.dumps(meta["official"])
    ends_in_log_softmax = "LogSoftmax" in text or (hasattr(model, "skeleton") and model.skeleton.log_softmax)
    seen["logits"] = logits.log_softmax(1) if ends_in_log_softmax else logits
    for name, expected in want.items():
        tried = stem if name == "stem" else [seen[name]] if name in seen else []
        if not tried:
            continue
        pooled = [t.mean((2, 3)) if t.dim() == 4 else t for t in tried]
        error = min(float((got - expected).abs().max() / expected.abs().max()) for got in pooled)
        assert error <= TOLERANCE, f"{name} differs by {error:.2g} of its largest entry"
