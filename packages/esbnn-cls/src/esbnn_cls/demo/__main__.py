"""`python -m esbnn_cls.demo`: see the package."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from esbnn_core.cli_support import run_main
from esbnn_core.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m esbnn_cls.demo", description="Train plain and expanded networks on digits and compare them."
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"), metavar="DIR", help="folder for results (default: build/demo)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="number of seeds (default: 5)")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs instead of the recipe's 40")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one a core)")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs: shows the road, not the accuracy")
    parser.add_argument("--export", type=Path, metavar="DIR", help="also write the first seed's trained networks to DIR/plain and DIR/es")
    options = parser.parse_args(arguments)
    return run_main(lambda: _run(options), "esbnn-cls demo")


def _run(options: argparse.Namespace) -> int:
    seeds = 1 if options.quick else options.seeds
    epochs = 2 if options.quick and options.epochs is None else options.epochs
    jobs = 1 if options.quick and options.jobs is None else options.jobs  # starting processes would take longer than the runs
    for name, value in (("--seeds", seeds), ("--epochs", epochs), ("--jobs", jobs)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: at least 1 is needed")
    began = time.monotonic()
    print(f"training {2 * seeds} networks on scikit-learn's digits" + ("" if options.quick else ", a few minutes"), flush=True)

    from esbnn_cls import demo
    from esbnn_cls.comparison import reading, table, to_text

    compared = demo.run(options.out, tuple(range(seeds)), epochs, jobs)
    print("\n" + to_text(table(compared)))
    print("\n" + reading(compared[0], compared[1]))
    print(f"Measured in {time.monotonic() - began:.0f} s. Table and plots: {os.path.relpath(options.out / 'index.html')}")
    if options.export is not None:
        demo.export(options.out, options.export, seed=0)
        print(f"Trained networks of seed 0: {options.export}/plain and {options.export}/es")
    return 0


if __name__ == "__main__":
    sys.exit(main())
