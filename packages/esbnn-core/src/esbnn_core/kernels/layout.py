"""The two packed layouts, written down once: words of bits, and the prepared form of weights. Pure torch, for every device.

Words: bit 1 is +1, bit 0 is -1. Packed activations are int64 [N, H, W, G, ceil(Cg/64)] (torch has no arithmetic on uint64; the bits are
the same): channel c of group g is bit c%64 of word c//64, spare bits of the last word are zero. Prepared weights are one uint8 tensor,
described in csrc/include/esbnn.h: a header of eight int64, words [G, B, kh*kw, ceil(Cg/64), 8], int32 numbers of +1 weights.
"""

from __future__ import annotations

from esbnn_core.errors import UserError

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["pack_words", "packed_shape", "prepare_weights", "prepared_bits", "prepared_bytes", "unpack_words", "words_of"]

MAGIC = 0x0157544E4E425345
_HEADER = 64


def words_of(channels: int) -> int:
    """Words that hold so many bits."""
    return (channels + 63) // 64


def pack_words(bits: Tensor) -> Tensor:
    """bool [..., C] -> int64 [..., ceil(C/64)]."""
    channels = bits.shape[-1]
    padded = F.pad(bits, (0, -channels % 64)).unflatten(-1, (words_of(channels), 64))
    powers = torch.ones(64, dtype=torch.int64, device=bits.device) << torch.arange(64, device=bits.device)
    words: Tensor = (padded.to(torch.int64) * powers).sum(-1)  # distinct bits: the sum cannot overflow, the sign is bit 63
    return words


def unpack_words(words: Tensor, channels: int) -> Tensor:
    """int64 [..., ceil(C/64)] -> bool [..., C]."""
    shifted = words.unsqueeze(-1) >> torch.arange(64, device=words.device)
    return (shifted & 1).bool().flatten(-2)[..., :channels]


def packed_shape(x: Tensor, groups: int) -> tuple[int, int, int, int, int]:
    """Shape of the packed form of x [N, C, H, W]."""
    n, c, h, w = x.shape
    return (n, h, w, groups, words_of(c // groups))


def _octets(filters: int, groups: int) -> int:
    return (filters // groups + 7) // 8


def _sections(filters: int, per_group: int, kernel: tuple[int, int], groups: int) -> tuple[int, int, int]:
    """Offsets in bytes of the words, of the numbers of ones, and of what comes after."""
    lanes, taps = groups * _octets(filters, groups) * 8, kernel[0] * kernel[1]
    sums = _HEADER + lanes * taps * words_of(per_group) * 8
    return _HEADER, sums, -(-(sums + lanes * taps * 4) // 64) * 64


def prepared_bytes(filters: int, per_group: int, kernel: tuple[int, int], groups: int = 1) -> int:
    """Bytes of prepared weights without an expansion."""
    return _sections(filters, per_group, kernel, groups)[2]


def prepare_weights(bits: Tensor, groups: int = 1) -> Tensor:
    """Weight bits bool [O, Cg, kh, kw] (true for +1) -> the form that kernels read, uint8 [bytes].

    A `UserError` if `groups` does not divide O.
    """
    if bits.dim() != 4 or bits.dtype != torch.bool:
        raise UserError(f"weight bits are bool [O, Cg, kh, kw]; these are {bits.dtype} {list(bits.shape)}")
    o, per_group, kh, kw = bits.shape
    if o % groups:
        raise UserError(f"groups={groups} must divide the {o} filters")
    octets, taps = _octets(o, groups), kh * kw
    at_words, at_sums, end = _sections(o, per_group, (kh, kw), groups)
    by_group = bits.movedim(1, -1).reshape(groups, o // groups, taps, per_group)
    lanes = F.pad(by_group, (0, 0, 0, 0, 0, octets * 8 - o // groups)).unflatten(1, (octets, 8))  # [G, B, 8, taps, Cg]
    words = pack_words(lanes).permute(0, 1, 3, 4, 2).contiguous()
    sums = lanes.sum(-1, dtype=torch.int32).permute(3, 0, 1, 2).contiguous()
    header = torch.tensor([MAGIC, o, groups, per_group, kh, kw, end, 0], dtype=torch.int64, device=bits.device)
    out = torch.zeros(end, dtype=torch.uint8, device=bits.device)
    out[:_HEADER] = header.view(torch.uint8)
    out[at_words:at_sums] = words.flatten().view(torch.uint8)
    out[at_sums : at_sums + sums.numel() * 4] = sums.flatten().view(torch.uint8)
    return out


def prepared_bits(weight: Tensor, filters: int, per_group: int, kernel: tuple[int, int], groups: int = 1) -> Tensor:
    """The bits of prepared weights, bool [O, Cg, kh, kw]. A `UserError` if the tensor is too short for the sizes."""
    at_words, at_sums, end = _sections(filters, per_group, kernel, groups)
    if weight.dtype != torch.uint8 or weight.dim() != 1 or weight.shape[0] < end:
        raise UserError(f"prepared weights of these sizes are uint8 [{end} or more]; these are {weight.dtype} {list(weight.shape)}")
    octets = _octets(filters, groups)
    words = weight[at_words:at_sums].contiguous().view(torch.int64)
    words = words.view(groups, octets, kernel[0] * kernel[1], words_of(per_group), 8).permute(0, 1, 4, 2, 3)
    bits = unpack_words(words.flatten(1, 2)[:, : filters // groups], per_group)  # [G, O/G, taps, Cg]
    of_filters: Tensor = bits.flatten(0, 1).movedim(-1, 1).unflatten(2, kernel)
    return of_filters
