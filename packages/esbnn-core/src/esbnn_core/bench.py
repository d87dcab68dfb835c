"""Benches: named cases timed side by side, their steps interleaved in one run, reported as ratios. A slow result is never an error.

bench = Bench("sign", "sign of 4 M floats", cases={"ours": make_ours, "torch": make_torch}, targets=(Target("ours", "torch", 0.5),))
result = run_bench(bench, rounds=20)
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from esbnn_core.errors import UserError

__all__ = ["Bench", "Target", "format_bench", "run_bench", "select"]

Step = Callable[[], object]


@dataclass(frozen=True)
class Target:
    """A figure to compare with: the time of `case` is wanted to be at most `at_most` times that of `against`. why: one phrase."""

    case: str
    against: str
    at_most: float
    why: str = ""


@dataclass(frozen=True)
class Bench:
    """name: what the command line calls it. title: what one step does. cases: name -> a function that builds the case and returns its
    step. targets: ratios that are printed beside the measured ones. facts: whatever else the reader has to know (sizes), JSON values."""

    name: str
    title: str
    cases: Mapping[str, Callable[[], Step]]
    targets: tuple[Target, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def select(benches: tuple[Bench, ...], names: list[str] | None) -> list[Bench]:
    """The benches that are asked for, all where none is. Raises UserError with the known names for one that does not exist."""
    known = {bench.name: bench for bench in benches}
    for name in names or ():
        if name not in known:
            raise UserError(f"no bench is called {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(benches)


def run_bench(
    bench: Bench, *, rounds: int, warmup: int = 2, seconds: float | None = None, told: Callable[[int], object] | None = None
) -> dict[str, Any]:
    """Time a bench: {name, title, facts, warmup, rounds, cases: {case: {median, minimum, times}}, ratios: [...]}; times in seconds.

    A round runs one step of every case, so that whatever else the machine does meanwhile meets all of them. seconds: no new round
    begins after that long (one round is always measured). told: called after every round with their number.
    """
    steps = {case: make() for case, make in bench.cases.items()}
    times: dict[str, list[float]] = {case: [] for case in steps}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would fall into one case's step
    try:
        began = time.perf_counter()
        for number in range(warmup + rounds):
            if number > warmup and seconds is not None and time.perf_counter() - began > seconds:
                break
            for case, step in steps.items():
                before = time.perf_counter()
                step()
                if number >= warmup:
                    times[case].append(time.perf_counter() - before)
            if told is not None and number >= warmup:
                told(number - warmup + 1)
    finally:
        if collecting:
            gc.enable()
    cases: dict[str, dict[str, Any]] = {
        case: {"median": statistics.median(values), "minimum": min(values), "times": [round(v, 7) for v in values]}
        for case, values in times.items()
    }
    ratios = [
        {
            "case": target.case,
            "against": target.against,
            **{key: cases[target.case][key] / cases[target.against][key] for key in ("median", "minimum")},
            "target": target.at_most,
            "why": target.why,
        }
        for target in bench.targets
    ]
    head = {"name": bench.name, "title": bench.title, "facts": dict(bench.facts)}
    return {**head, "warmup": warmup, "rounds": len(next(iter(times.values()))), "cases": cases, "ratios": ratios}


def format_bench(result: Mapping[str, Any]) -> str:
    """A result of `run_bench` as text: a line a case in milliseconds, a line a ratio with its target beside it."""
    width = max(len(case) for case in result["cases"])
    lines = [f"{result['title']}: {result['rounds']} rounds after {result['warmup']} for warming up"]
    lines.append(f"  {'':<{width}}  {'median':>10}  {'minimum':>10}")
    for case, found in result["cases"].items():
        lines.append(f"  {case:<{width}}  {1e3 * found['median']:>7.1f} ms  {1e3 * found['minimum']:>7.1f} ms")
    for ratio in result["ratios"]:
        why = f" ({ratio['why']})" if ratio["why"] else ""
        lines.append(
            f"  {ratio['case']} / {ratio['against']}: {ratio['median']:.2f} of medians, {ratio['minimum']:.2f} of minima; "
            f"target at most {ratio['target']:.2f}{why}"
        )
    return "\n".join(lines)
