"""Count a network's operations by running it once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral
from typing import Any

from esbnn_core.accounting.borrow import borrowed
from esbnn_core.accounting.report import Report, Row
from esbnn_core.accounting.stored import Stored, stored
from esbnn_core.accounting.tally import Tally
from esbnn_core.errors import UserError
from esbnn_core.nn import BinaryLayer

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["count_ops"]


def count_ops(
    model: nn.Module,
    input_size: Sequence[int] | Sequence[Sequence[int]] | None = None,
    *,
    batch_size: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    inputs: Any = None,
) -> Report:
    """Run `model` once in evaluation mode and count; any network, functional calls included. The paper's section 4.5, Table 6.

    input_size: (C, H, W) without the batch, or one such for each positional input. inputs: tensors instead, a tuple of the positional
    inputs, batch included. dtype: of the made-up input; None: the model's. device: where to run; None tries `meta`, where shapes are
    followed and nothing is computed, and then the model's own device.

    Columns of the report, for the whole batch; one multiply-accumulate is one operation, additions of biases are none:

    - conv_flops: real convolutions. fc_flops: real matrix products: linear layers, matmul, attention, recurrent layers.
    - bops: products of binary layers. A binary layer that reads real input or still has real weights counts as conv or fc.
    - bn_flops: one per element that a batch norm writes, after the copies, shortcuts' norms included. Only batch norms are in the
      paper's OPs+; other norms (group, layer, instance, RMS) are rows of kind `norm` that count as elementwise.
    - ops = conv_flops + fc_flops + bops/64. ops_plus = ops + bn_flops.
    - elementwise: one per output element of every other operation that computes (activation, sum, scale, pool, resampling, softmax, a
      reduction), one per input element of a sign; in no total. Work on weights alone, which can be done once, counts as nothing.
    - params_binary, params_real: trained parameters. packed_bytes: what inference keeps, see `esbnn_core.accounting.stored`.

    The model is left exactly as it was, also after an error: mode, statistics, hooks, cached values.
    Raises `UserError` where the model cannot be run on this input, saying why.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        raise UserError("the model has lazy layers whose sizes are not known yet; run it once on real input before counting")
    given = _inputs(model, input_size, batch_size, dtype, inputs)
    kept = stored(model)
    home = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    try:
        tally = _run(model, given, torch.device(device or "meta"))
    except UserError:
        if device is not None or home.type == "meta":
            raise
        # Values that steer the run, or an operator without a shape rule; an input that does not fit fails once more, and says why.
        tally = _run(model, given, home)
    return _report(model, tally, kept, given)


def _inputs(model: nn.Module, input_size: Any, batch_size: int, dtype: torch.dtype | None, inputs: Any) -> tuple[Any, ...]:
    if (input_size is None) == (inputs is None):
        raise UserError("give either input_size, for example (3, 224, 224), or inputs")
    if inputs is not None:
        return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    sizes = [input_size] if all(isinstance(n, Integral) for n in input_size) else input_size
    if not sizes or not all(isinstance(n, Integral) and int(n) >= 1 for size in (*sizes, (batch_size,)) for n in size):
        raise UserError(f"input_size {input_size!r}, batch_size {batch_size!r}: wanted are whole numbers from 1, such as (3, 224, 224)")
    if dtype is None:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand((batch_size, *size), generator=generator).to(dtype) for size in sizes)


def _run(model: nn.Module, inputs: tuple[Any, ...], device: torch.device) -> Tally:
    """One forward on `device`, watched. Raises `UserError` for whatever goes wrong in it."""
    placed = tree_map(lambda leaf: leaf.detach().to(device) if isinstance(leaf, Tensor) else leaf, inputs)
    try:
        with borrowed(model, device), _readable(device):
            tally = Tally(model)
            tally.mark_input(placed)
            with tally:
                model(*placed)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, t.shape)) for t in tree_leaves(inputs) if isinstance(t, Tensor))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{type(model).__name__} cannot be run on an input of {shapes}: {reason}") from error
    return tally


@contextmanager
def _readable(device: torch.device) -> Iterator[None]:
    """Torch without its fused forms, which hide products, and without traces in its random state."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(sdpa_kernel([SDPBackend.MATH]))
        if device.type == "meta":
            stack.enter_context(device)  # tensors that the model makes itself
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        yield


def _report(model: nn.Module, tally: Tally, kept: dict[str, Stored], inputs: tuple[Any, ...]) -> Report:
    counts = {key: Counter(count) for key, count in tally.counts.items()}
    for name, entry in kept.items():
        # Beside the module's products if it has some: a user's own layer is `other` by its type.
        key = next((k for k in counts if k[0] == name), (name, entry.kind))
        counts.setdefault(key, Counter()).update(
            params_binary=entry.params_binary, params_real=entry.params_real, packed_bytes=entry.packed_bytes
        )
    modules = dict(model.named_modules())
    rows = []
    for (name, kind), count in counts.items():
        call, module = tally.called.get(name), modules[name]
        capacity = module.capacity if isinstance(module, BinaryLayer) and kind.startswith("binary") and module.has_form() else None
        numbers: dict[str, Any] = dict(count)
        if call is not None:
            numbers |= {"in_shape": call.in_shape, "out_shape": call.out_shape, "calls": call.calls}
        rows.append(Row(name, kind, capacity=capacity, **numbers))
    return Report(tuple(rows), tuple(tuple(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor)))
