"""Evaluation of classifiers: top-1, top-5, loss."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esbnn_cls.data import Batches, Preprocess, open_batches, open_source
from esbnn_cls.modelfolder import load_classifier
from esbnn_core.errors import UserError
from esbnn_core.progress import Bar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Scores", "evaluate", "score"]


@dataclass(frozen=True)
class Scores:
    """top1, top5: percent of the images (top5 is 100 where there are fewer than six classes). loss: mean cross-entropy, nats."""

    top1: float
    top5: float
    loss: float
    images: int

    @classmethod
    def of_sums(cls, sums: Tensor) -> Scores:
        """From (top-1 hits, top-5 hits, summed loss, images)."""
        first, fifth, loss, images = sums.tolist()
        return cls(100 * first / images, 100 * fifth / images, loss / images, int(images))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def score(model: nn.Module, batches: Batches, *, batch: int = 256, rank: int = 0, world: int = 1, shown: bool = False) -> Tensor:
    """Sums over this process's share of the images: float64 (top-1 hits, top-5 hits, summed loss, images).

    The model's mode is set to evaluation and put back. Nothing random is drawn.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    with Bar(len(batches) // world, "evaluating", unit="image", shown=shown) as bar:
        for x, labels in batches.evaluation(batch, rank, world):
            logits = model(x).float()
            if int(labels.max()) >= logits.shape[1]:
                raise UserError(
                    f"the data has a label {int(labels.max())}, the model only {logits.shape[1]} classes; it is another dataset's"
                )
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.tensor([int(ranked[:, 0].sum()), int(ranked.any(1).sum()), float(loss), len(labels)], dtype=torch.float64)
            bar.advance(len(labels))
    model.train(was_training)
    return sums


def evaluate(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    split: str = "test",
    batch: int = 256,
    workers: int = 0,
    resize: bool = False,
    device: str | torch.device = "cpu",
    shown: bool = True,
) -> dict[str, Any]:
    """Evaluate a checkpoint folder on a dataset: {top1, top5 (percent), loss, images, checkpoint, data, split}.

    data: see `esbnn_cls.data.open_source`; images are prepared as the folder's config.json says.
    """
    model, config = load_classifier(checkpoint)
    preprocess = Preprocess.from_config(config, str(Path(checkpoint) / "config.json"))
    source = open_source(Path(data) if isinstance(data, os.PathLike) else data, split)
    batches = open_batches(source, preprocess, resize=resize, workers=workers, device=device, shown=shown)
    scores = Scores.of_sums(score(model.to(device), batches, batch=batch, shown=shown))
    return {**scores.as_dict(), "checkpoint": str(checkpoint), "data": str(data), "split": split}
