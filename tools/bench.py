"""Time what the packages' benches describe and write the figures as JSON; a slow machine is no error.

    python tools/bench.py [--quick] [--only NAME ...] [--threads 2] [--json build/bench.json]

Cases of one bench are interleaved step by step, so their ratios hold on a busy machine too; the times themselves do not.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.py", description="Time the packages' benches; ratios are printed beside their targets.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these benches alone; --list names them")
    parser.add_argument("--quick", action="store_true", help="few rounds: about 30 seconds in all")
    parser.add_argument("--rounds", type=int, metavar="N", help="measured steps of every case (default: 30, quick: 8)")
    parser.add_argument("--threads", type=int, default=2, metavar="T", help="CPU threads (default: 2)")
    parser.add_argument("--json", default=str(ROOT / "build" / "bench.json"), metavar="FILE", help="default: build/bench.json")
    parser.add_argument("--list", action="store_true", help="list the benches")
    options = parser.parse_args(arguments)

    from esbnn_core.cli_support import run_main

    return run_main(lambda: _run(options), "bench.py")


def _run(options: argparse.Namespace) -> int:
    from esbnn_cls.bench import BENCHES
    from esbnn_core.bench import format_bench, run_bench, select
    from esbnn_core.cli_support import write_json
    from esbnn_core.errors import UserError
    from esbnn_core.machine import describe_machine, git_commit
    from esbnn_core.progress import Bar

    import torch

    if options.list:
        print("\n".join(f"{bench.name}: {bench.title}" for bench in BENCHES))
        return 0
    rounds = (8 if options.quick else 30) if options.rounds is None else options.rounds
    for name, value in (("--rounds", rounds), ("--threads", options.threads)):
        if value < 1:
            raise UserError(f"{name} {value}: at least 1 is needed")
    chosen = select(BENCHES, options.only)
    torch.set_num_threads(options.threads)
    machine = describe_machine(options.threads)
    commit = git_commit(ROOT)
    print(_head(machine, commit), flush=True)
    results: list[dict[str, Any]] = []
    for bench in chosen:
        with Bar(rounds, bench.name, unit="round") as bar:
            # Quick has to end within 30 seconds, with Python's and torch's start in them.
            limit = 18 / len(chosen) if options.quick else None
            warmup = 1 if options.quick else 3
            results.append(run_bench(bench, rounds=rounds, warmup=warmup, seconds=limit, told=lambda _, b=bar: b.advance()))
        print("\n" + format_bench(results[-1]), flush=True)
    write_json(options.json, {"kind": "bench", "machine": machine, "commit": commit, "quick": options.quick, "benches": results})
    print(f"\nwritten: {os.path.relpath(options.json)}")
    return 0


def _head(machine: dict[str, Any], commit: str | None) -> str:
    lines = [f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}"]
    lines.append(f"features: {' '.join(machine['features']) or 'unknown'}")
    lines.append(f"{machine['date']}, commit {commit or 'unknown'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
