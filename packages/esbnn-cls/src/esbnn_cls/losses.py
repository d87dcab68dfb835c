"""Training losses: cross-entropy with labels or mixed labels, and the distributional loss to a real-valued teacher."""

from __future__ import annotations

from collections.abc import Callable

from esbnn_cls.modelfolder import create
from esbnn_cls.recipe import Loss
from esbnn_core.errors import UserError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["build_loss", "distribution_loss"]

Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]


def distribution_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """-sum softmax(teacher) * log_softmax(logits), mean over the batch; [N, classes] both. Source: ReActNet, equation 9; ReCU two-stage."""
    return -(teacher.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def build_loss(recipe: Loss, num_classes: int, device: torch.device) -> Criterion:
    """The loss as a function of (logits [N, classes], target, x); target: labels int64 [N], or weights of classes [N, classes]."""
    if recipe.name == "cross_entropy":
        # F.cross_entropy takes both kinds of target.
        return lambda logits, target, x: F.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing)
    teacher = _teacher(recipe, num_classes).to(device).eval().requires_grad_(False)

    def criterion(logits: Tensor, target: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(x)
        return distribution_loss(logits, wanted)

    return criterion


def _teacher(recipe: Loss, num_classes: int) -> nn.Module:
    assert recipe.teacher is not None  # checked with the recipe
    if recipe.teacher_weights is None:
        return create(recipe.teacher, {"pretrained": True, "num_classes": num_classes}, where="loss.teacher")
    try:
        return create(recipe.teacher, {"checkpoint_path": recipe.teacher_weights, "num_classes": num_classes}, where="loss.teacher")
    except (OSError, RuntimeError) as error:
        raise UserError(f"loss.teacher_weights={recipe.teacher_weights}: not weights of {recipe.teacher} ({error})") from error
