"""Recipes: everything that decides a training run, as dataclasses that are read from YAML and checked key by key.

A recipe may say `base: other.yaml` (a path beside it, or the name of a shipped recipe) and give only what differs. The resolved recipe
is written beside a run's results; with the seed it says how to repeat them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Augment", "Data", "Ema", "Loss", "Optimizer", "Output", "Recipe", "Rule", "Schedule", "to_dict"]


@dataclass(frozen=True)
class Data:
    """Where images come from and how they are prepared; what is None comes from the model's default configuration.

    path: folder, tar archive, `hfds/NAME` (Hugging Face hub) or `digits` (scikit-learn). train, test: names of the splits.
    storage: memory (decoded once, for small images), stream (decoded anew every epoch), or auto.
    """

    path: str | None = None
    train: str = "train"
    test: str = "test"
    img_size: int | None = None  # side in pixels; None: the model's
    resize: bool = False  # whether small images of another size are resized to it; otherwise they are an error
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    storage: Literal["auto", "memory", "stream"] = "auto"
    workers: int = 0  # processes that decode in stream storage; the result does not depend on it


@dataclass(frozen=True)
class Augment:
    """What is done to training images.

    crop: pad (`padding` zeros around the image, then a random crop to its own size), resized (a random part, `scale` of the area and
    `ratio` of the sides, resized) or none. color_jitter: brightness, contrast, saturation[, hue]. auto_augment: as timm spells it
    (`rand-m7-mstd0.5-inc1`). erasing: probability. mixup, cutmix: timm's alpha, 0 is off.
    """

    crop: Literal["pad", "resized", "none"] = "pad"
    padding: int = 4
    flip: float = 0.5
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    color_jitter: tuple[float, ...] | None = None
    auto_augment: str | None = None
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True)
class Rule:
    """An exception for some parameters: the first rule that takes a parameter decides about it.

    name: regular expression searched in the parameter's name. of: binary (parameters of binary layers: weights, scales, rotations),
    binary_weight (their latent weights alone), norm (batch norms) or bias. dims: the number of dimensions. What is given must all hold.
    """

    weight_decay: float | None = None
    lr_scale: float = 1.0
    name: str | None = None
    of: Literal["binary", "binary_weight", "norm", "bias"] | None = None
    dims: int | None = None


@dataclass(frozen=True)
class Optimizer:
    """name: as timm's factory spells it (`momentum` is plain SGD with momentum, `sgd` is Nesterov's). args: whatever else it takes."""

    name: str = "momentum"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    args: dict[str, Any] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the epoch (or of the step, per: step); names are those of timm's factory, and `table`.

    shift: epochs by which the schedule is ahead (1: codes that step it before an epoch instead of after). milestones, in epochs, take
    effect at the beginning of that epoch. table: epoch -> learning rate from that epoch on.
    """

    name: Literal["cosine", "multistep", "step", "poly", "constant", "tanh", "table"] = "cosine"
    min_lr: float = 0.0
    warmup_epochs: int = 0
    warmup_lr: float = 0.0
    warmup_prefix: bool = False  # whether the warm-up comes before the schedule instead of replacing its beginning
    milestones: tuple[int, ...] = ()
    decay_epochs: int = 30
    decay_rate: float = 0.1  # factor of step and multistep, power of poly
    shift: int = 0
    per: Literal["epoch", "step"] = "epoch"
    table: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """cross_entropy with the labels, or distribution: cross-entropy with the softmax of a real-valued teacher, no labels.

    teacher: a timm model; teacher_weights: file with its weights (None: timm's pretrained ones).
    """

    name: Literal["cross_entropy", "distribution"] = "cross_entropy"
    label_smoothing: float = 0.0
    teacher: str | None = None
    teacher_weights: str | None = None


@dataclass(frozen=True)
class Ema:
    """Exponential moving average of the weights (timm's ModelEmaV3), evaluated and saved in their place; decay None: none is kept."""

    decay: float | None = None
    warmup: bool = False


@dataclass(frozen=True)
class Output:
    """eval_every: epochs between evaluations (the last epoch is always evaluated). save_steps: steps between checkpoints, besides the one
    at every epoch's end."""

    eval_every: int = 1
    save_steps: int | None = None
    tensorboard: bool = False


@dataclass(frozen=True)
class Recipe:
    """One training run.

    batch_size: images an optimizer step, over all processes and accumulated parts. init: checkpoint folder whose weights the run starts
    from (all of them must fit). weight_mode: real trains with binary activations and real weights (the first of two stages).
    progress: whether the method's schedules move once an epoch, as in the official codes, or with every step.
    """

    model: str
    model_args: dict[str, Any] = field(default_factory=dict)
    init: str | None = None
    weight_mode: Literal["binary", "real"] = "binary"
    epochs: int = 20
    batch_size: int = 128
    accumulation: int = 1
    seed: int = 0
    threads: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_grad: float | None = None
    progress: Literal["epoch", "step"] = "epoch"
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    loss: Loss = field(default_factory=Loss)
    ema: Ema = field(default_factory=Ema)
    output: Output = field(default_factory=Output)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain lists, dicts and numbers: what is written to YAML and JSON and compared on resuming."""
    plain: dict[str, Any] = _plain(asdict(recipe))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
