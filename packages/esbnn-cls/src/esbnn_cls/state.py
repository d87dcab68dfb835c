"""The training state: everything that a run needs to go on after its process was killed, as safetensors and JSON.

A run's folder:

    recipe.yaml            the resolved recipe               metrics.csv    one line an epoch
    checkpoints/step-N/    model.safetensors, config.json (what `eval` reads), training_state/{state.json, tensors.safetensors}
    checkpoints/best-N/    model.safetensors, config.json
    last, best             links to two of them

Checkpoints are written at step boundaries only, so gradients are no part of the state; randomness is keyed (`esbnn_core.rng`), so the
random states are kept for the user's own code alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esbnn_core import rng
from esbnn_core.checkpoint import encode_json, encode_tensors, load_json, load_model, load_tensors, model_files
from esbnn_core.errors import UserError
from esbnn_core.files import point, remove_folder, sweep, write_folder

import torch
from torch import Tensor, nn

__all__ = ["RunFolder", "TrainingState", "optimizer_tensors", "restore_optimizer"]

_STATE, _TENSORS = "training_state/state.json", "training_state/tensors.safetensors"


@dataclass
class TrainingState:
    """The numbers of the state; tensors travel beside it.

    step: optimizer steps done. sums: (summed loss, hits, images) of the epoch so far. seconds: spent in the epoch so far.
    history: one row an epoch, what metrics.csv shows. best: the row that `best` belongs to. recipe: resolved. world, threads: of the run.
    """

    step: int = 0
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_top1: float = -1.0
    recipe: dict[str, Any] = field(default_factory=dict)
    world: int = 1
    threads: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] | None = None


class RunFolder:
    """Writes and finds the checkpoints of one run. Only one process may write."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkpoints = folder, folder / "checkpoints"

    def latest(self) -> Path | None:
        """The newest whole checkpoint: the highest step, since a folder gets its name only when it is whole."""
        found = [(int(p.name[5:]), p) for p in self.checkpoints.glob("step-*") if p.name[5:].isdigit()]
        return max(found)[1] if found else None

    def clean(self, state: TrainingState) -> None:
        """Bring the folder to a state read from it: remove left-overs, repair the links that a killed process did not come to set."""
        sweep(self.folder, ("recipe.yaml", "metrics.csv", "last", "best"))
        sweep(self.checkpoints)
        if state.step:
            self._links_and_prune(state)

    def save_best(self, step: int, model: dict[str, Tensor], config: dict[str, Any]) -> None:
        """Write the best model so far. The link `best` moves with the next `save`: before it, a resumed run would not know of it."""
        target = self.checkpoints / f"best-{step}"
        if not target.exists():  # there already: written before the process was killed, and whole
            write_folder(target, model_files(model, config))

    def save(self, state: TrainingState, model: dict[str, Tensor], config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
        """Write the checkpoint of `state.step`, then move the links, then remove older ones."""
        target = self.checkpoints / f"step-{state.step}"
        if not target.exists():
            random_tensors, random_values = rng.capture()
            own = {**tensors, **{f"rng/{name}": tensor for name, tensor in random_tensors.items()}}
            values = {"format": 1, **asdict(state), "rng": random_values}
            files = model_files(model, config) | {_STATE: encode_json(values), _TENSORS: encode_tensors(own)}
            write_folder(target, files)
        self._links_and_prune(state)
        return target

    def load(self, path: Path) -> tuple[TrainingState, dict[str, Tensor], dict[str, Tensor]]:
        """Read a checkpoint: (state, model's tensors, the state's own tensors); the random streams are put back."""
        model, _ = load_model(path)
        values, tensors = load_json(path / _STATE), load_tensors(path / _TENSORS)
        try:
            random_values = values.pop("rng")
            if values.pop("format") != 1:
                raise KeyError("format")
            values["sums"] = tuple(values["sums"])
            state = TrainingState(**values)
            rng.restore({k[4:]: v for k, v in tensors.items() if k.startswith("rng/")}, random_values)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path / _STATE}: not a training state of this version ({error})") from error
        return state, model, tensors

    def _links_and_prune(self, state: TrainingState) -> None:
        keep = {f"step-{state.step}", f"best-{state.best_step}"}
        point(self.folder / "last", f"checkpoints/step-{state.step}")
        if state.best_step is not None:
            point(self.folder / "best", f"checkpoints/best-{state.best_step}")
        for entry in sorted(self.checkpoints.iterdir()):
            if entry.name.startswith(("step-", "best-")) and entry.name not in keep:
                remove_folder(entry)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state by parameter name (`optimizer/<name>/<key>`), and its groups without the parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {
        f"optimizer/{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if value is not None
    }
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, [_plain(group) for group in groups]


def restore_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor], groups: list[dict[str, Any]], where: str
) -> None:
    """Put an optimizer's state back by parameter name; `load_state_dict` would map by position."""
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: tuple(v) if isinstance(group.get(key), tuple) else v for key, v in saved.items()})
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        if key.startswith("optimizer/"):
            name, _, slot = key.removeprefix("optimizer/").rpartition("/")
            if name not in parameters:
                raise UserError(f"{where}: holds optimizer state of {name}, which the model does not have")
            # A step count stays on the CPU, as optimizers make it; everything else lives beside its parameter.
            home = parameters[name].device if tensor.dim() else tensor.device
            optimizer.state[parameters[name]][slot] = tensor.to(home)


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()}
