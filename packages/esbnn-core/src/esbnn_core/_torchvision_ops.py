"""The stand-ins' kernels: nms, RoIAlign and RoIPool with their gradients; the other operators exist and say what is missing.

Rules are those of torchvision's CPU kernels: nms and RoIPool agree exactly, RoIAlign to rounding. RoIAlign is separable: for each box
the output is W_y @ crop @ W_x^T with a small matrix an axis, and the gradient its transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

_ROI = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_BACK = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SIZE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_DEFORM = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, "
    "SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask"
)
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_ROI}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward(Tensor grad, Tensor rois, {_BACK}, {_SIZE}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({_ROI}) -> (Tensor, Tensor)",
    f"_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, {_BACK}, {_SIZE}) -> Tensor",
    f"ps_roi_align({_ROI}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, {_BACK}, int sampling_ratio, {_SIZE}) -> Tensor",
    f"ps_roi_pool({_ROI}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, {_BACK}, {_SIZE}) -> Tensor",
    f"deform_conv2d({_DEFORM}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "qroi_align(Tensor input, Tensor rois, float input_scale, int input_zero_point, float rois_scale, int rois_zero_point, "
    "float spatial_scale, SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
    "box_iou_rotated(Tensor boxes1, Tensor boxes2) -> Tensor",
    "_cuda_version() -> int",
)


def define() -> list[torch.library.Library]:
    """Define every operator of torchvision; returns the objects that keep them alive."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    kernels: dict[str, Callable[..., Any]] = {
        "nms": nms,
        "roi_align": roi_align,
        "_roi_align_backward": roi_align_backward,
        "roi_pool": roi_pool,
        "_roi_pool_backward": roi_pool_backward,
    }
    for schema in _SCHEMAS:
        library.define(schema)
        name = schema.split("(")[0]
        if name == "_cuda_version":
            library.impl(name, lambda: -1, "CompositeExplicitAutograd")
            continue
        kernel = kernels.get(name, _missing(name))
        for key in ("CPU", "CUDA"):
            library.impl(name, kernel, key)
    return [library]


def _missing(name: str) -> Callable[..., NoReturn]:
    def raise_missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"torchvision.ops.{name} is compiled code, and this torchvision's library did not load; install torch and torchvision builds "
            f"that match (both CPU, or both for one CUDA version)"
        )

    return raise_missing


def _wide(t: Tensor) -> Tensor:
    """Boxes as the official CPU kernels compute with them: float64 stays, everything narrower is float32."""
    return t.detach().cpu().to(torch.promote_types(t.dtype, torch.float32))


def nms(dets: Tensor, scores: Tensor, iou_threshold: float, block: int = 512) -> Tensor:
    """Indices of the boxes kept, by falling score. dets [n, 4] as x1, y1, x2, y2; suppressed where IoU > threshold."""
    order = scores.sort(descending=True, stable=True).indices
    boxes = _wide(dets[order])
    n = boxes.shape[0]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    dead = np.zeros(n, dtype=bool)
    kept: list[int] = []
    for start in range(0, n, block):
        stop = min(start + block, n)
        rows = torch.arange(start, stop)[torch.from_numpy(~dead[start:stop])]
        if not len(rows):
            continue
        low = torch.maximum(boxes[rows, None, :2], boxes[None, start:, :2])
        high = torch.minimum(boxes[rows, None, 2:], boxes[None, start:, 2:])
        inter = (high - low).clamp_(min=0).prod(2)
        # The official kernel divides in the boxes' precision and compares with the threshold as double.
        over = ((inter / (area[rows, None] + area[None, start:] - inter)).double() > iou_threshold).numpy()
        for i, row in enumerate(rows.tolist()):
            if not dead[row]:
                kept.append(row)
                dead[row + 1 :] |= over[i, row + 1 - start :]
    return order[torch.tensor(kept, dtype=torch.long, device=order.device)]


def _axis(start: Tensor, size: Tensor, bins: int, samples: int, length: int) -> Tensor:
    """[bins, length]: how much each cell of one axis counts in each bin (mean over the bin's samples).

    start, size: scalars in the precision of the boxes. The number of samples and the cell that a sample falls into are decided in
    that precision, as the official kernel does: in float64 a quotient of exactly 1 may become 1 + 2e-16, and one sample two.
    """
    width = size / bins
    n = samples if samples > 0 else max(int(width.ceil()), 0)
    weights = torch.zeros(bins, length, dtype=torch.float64)
    if n == 0:
        return weights
    bin_start = start + torch.arange(bins, dtype=start.dtype).unsqueeze(1) * width
    at = bin_start + (torch.arange(n, dtype=start.dtype) + 0.5) * width / n
    share = ((at >= -1) & (at <= length)).double() / n
    at = at.clamp(min=0)
    low = at.floor().long()
    part = torch.where(low >= length - 1, 0.0, (at - low).double())
    low = low.clamp(max=length - 1)
    weights.scatter_add_(1, low, (1 - part) * share)
    weights.scatter_add_(1, (low + 1).clamp(max=length - 1), part * share)
    return weights


def _align_weights(roi: Tensor, scale: float, ph: int, pw: int, samples: int, aligned: bool, h: int, w: int) -> tuple[Tensor, Tensor]:
    x1, y1, x2, y2 = roi[1:] * scale - (0.5 if aligned else 0.0)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = width.clamp(min=1), height.clamp(min=1)
    return _axis(y1, height, ph, samples, h), _axis(x1, width, pw, samples, w)


def _crop(weights: Tensor) -> slice:
    """The cells that count at all: most boxes cover a small part of the map."""
    used = weights.any(0).nonzero().flatten()
    return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)


def roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """[k, C, pooled_height, pooled_width] from input [N, C, H, W] and rois [k, 5] (batch index, x1, y1, x2, y2)."""
    h, w = input.shape[2:]
    out = input.new_zeros(rois.shape[0], input.shape[1], pooled_height, pooled_width)
    for k, roi in enumerate(_wide(rois)):
        wy, wx = _align_weights(roi, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned, h, w)
        rows, columns = _crop(wy), _crop(wx)
        wy, wx = wy[:, rows].to(input), wx[:, columns].to(input)
        out[k] = wy @ input[int(roi[0]), :, rows, columns] @ wx.T
    return out


def roi_align_backward(
    grad: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int,
    batch_size: int, channels: int, height: int, width: int, sampling_ratio: int, aligned: bool,
) -> Tensor:  # fmt: skip
    """The gradient to the map: [N, C, H, W]."""
    out = grad.new_zeros(batch_size, channels, height, width)
    for k, roi in enumerate(_wide(rois)):
        wy, wx = _align_weights(roi, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned, height, width)
        rows, columns = _crop(wy), _crop(wx)
        wy, wx = wy[:, rows].to(grad), wx[:, columns].to(grad)
        out[int(roi[0]), :, rows, columns] += wy.T @ grad[k] @ wx
    return out


def _pool_edges(start: int, size: int, bins: int, length: int, number: type[np.floating[Any]]) -> list[tuple[int, int]]:
    width = number(size) / number(bins)
    edges = []
    for b in range(bins):
        low = int(np.floor(number(b) * width)) + start
        high = int(np.ceil(number(b + 1) * width)) + start
        edges.append((min(max(low, 0), length), min(max(high, 0), length)))
    return edges


def _half_away(v: np.floating[Any]) -> int:
    """C's round: halves away from zero. In float64, since 0.49999997 + 0.5 is 1 in float32."""
    return int(np.copysign(np.floor(abs(float(v)) + 0.5), float(v)))


def roi_pool(input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int) -> tuple[Tensor, Tensor]:
    """Maximum of each bin, [k, C, pooled_height, pooled_width], and its flat index in the map (int32, -1 for an empty bin)."""
    h, w = input.shape[2:]
    out = input.new_zeros(rois.shape[0], input.shape[1], pooled_height, pooled_width)
    where = torch.full(out.shape, -1, dtype=torch.int32, device=input.device)
    boxes = _wide(rois).numpy()
    number = boxes.dtype.type
    for k, roi in enumerate(boxes):
        x1, y1, x2, y2 = (_half_away(v * number(spatial_scale)) for v in roi[1:])
        rows = _pool_edges(y1, max(y2 - y1 + 1, 1), pooled_height, h, number)
        columns = _pool_edges(x1, max(x2 - x1 + 1, 1), pooled_width, w, number)
        for i, (top, bottom) in enumerate(rows):
            for j, (left, right) in enumerate(columns):
                if top < bottom and left < right:
                    cells = input[int(roi[0]), :, top:bottom, left:right].flatten(1)
                    value, index = cells.max(1)
                    out[k, :, i, j] = value
                    span = right - left
                    where[k, :, i, j] = ((top + index // span) * w + left + index % span).int()
    return out, where


def roi_pool_backward(
    grad: Tensor, rois: Tensor, argmax: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int,
    batch_size: int, channels: int, height: int, width: int,
) -> Tensor:  # fmt: skip
    """The gradient to the map: [N, C, H, W]."""
    out = grad.new_zeros(batch_size, channels, height * width)
    for k, roi in enumerate(rois.detach().cpu()):
        index = argmax[k].flatten(1).long()
        out[int(roi[0])].scatter_add_(1, index.clamp(min=0), grad[k].flatten(1) * (index >= 0))
    return out.view(batch_size, channels, height, width)
