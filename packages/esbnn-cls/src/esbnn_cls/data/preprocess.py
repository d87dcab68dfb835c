"""What a network expects of its input images; kept in a checkpoint's config.json, so that evaluation prepares them as training did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from esbnn_core.errors import UserError

from torch import nn

__all__ = ["Preprocess"]


@dataclass(frozen=True)
class Preprocess:
    """input_size: (C, H, W). mean, std: of the channels, of values in [0, 1]. crop_pct: side of the centre crop as a part of the
    resized image; it concerns large images only, small ones of the right size are taken as they are."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @classmethod
    def of_model(cls, model: nn.Module, in_chans: int = 3, **given: Any) -> Preprocess:
        """A timm model's default configuration, with what is given (and not None) in its place."""
        from timm.data import resolve_model_data_config  # type: ignore[attr-defined]  # timm re-exports without saying so

        found = resolve_model_data_config(model)
        side = given.pop("img_size", None)
        values = {key: value for key, value in given.items() if value is not None}
        size = (side, side) if side else tuple(found["input_size"])[1:]
        mean, std = (_channels(values.pop(key, None) or found[key], in_chans) for key in ("mean", "std"))
        rest = {key: values.get(key, found[key]) for key in ("interpolation", "crop_pct", "crop_mode")}
        return cls((in_chans, *size), mean, std, **rest)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Preprocess:
        """From the `preprocessing` part of a config.json. Raises UserError that names the file."""
        try:
            values = dict(config["preprocessing"])
            for key in ("input_size", "mean", "std"):
                values[key] = tuple(values[key])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: `preprocessing` is missing or not as it is written by this package ({error})") from error

    def to_config(self) -> dict[str, Any]:
        """As JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def _channels(values: tuple[float, ...] | list[float], in_chans: int) -> tuple[float, ...]:
    """Statistics of three channels for another number of them: their mean."""
    numbers = tuple(float(v) for v in values)
    return numbers if len(numbers) == in_chans else (sum(numbers) / len(numbers),) * in_chans
