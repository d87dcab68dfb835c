"""What a run reports: metrics.csv always, TensorBoard on request."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from esbnn_core.errors import UserError
from esbnn_core.files import write_file

__all__ = ["COLUMNS", "Board", "write_csv"]

COLUMNS = ("epoch", "step", "lr", "train_loss", "train_top1", "eval_loss", "eval_top1", "eval_top5", "flip_rate", "seconds")


def write_csv(path: Path, history: list[dict[str, Any]]) -> None:
    """Write a run's rows as CSV, atomically. The rows are part of the training state, so a resumed run continues the same file.

    epoch: from 1. lr: the epoch's last. train_*: means over the epoch's batches as they were seen. eval_*: empty where the epoch was
    not evaluated; top-1 and top-5 in percent. flip_rate: share of the binary weights whose bit changed since the last epoch's end (empty
    without binary layers). seconds: training and evaluation.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({key: "" if row.get(key) is None else row[key] for key in COLUMNS})
    write_file(path, text.getvalue().encode())


class Board:
    """TensorBoard's event files, or nothing."""

    def __init__(self, folder: Path, on: bool, step: int) -> None:
        self._writer: Any = None
        if on:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("output.tensorboard=true needs the package tensorboard: pip install tensorboard") from error
            self._writer = SummaryWriter(str(folder), purge_step=step or None)

    def add(self, row: dict[str, Any]) -> None:
        if self._writer is not None:
            for key, value in row.items():
                if key not in ("epoch", "step") and value is not None:
                    self._writer.add_scalar(key, value, row["step"])
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
