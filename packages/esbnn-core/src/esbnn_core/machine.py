"""What a measurement was made on: processor, threads, versions, date, commit. Nothing that names a person, a host or a path."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["cores", "describe_machine", "git_commit"]

# Instruction sets that decide which kernel runs; other flags say nothing about speed.
_FEATURES = (
    "sse4_2", "popcnt", "avx", "f16c", "fma", "bmi2", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_vpopcntdq", "avx512_bitalg", "avx512_bf16", "avx512_fp16", "gfni", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


def describe_machine(threads: int | None = None) -> dict[str, Any]:
    """The machine as JSON values.

    threads: of the measurement; None: torch's present number. Keys: cpu (model), architecture, cores (that this process may use),
    features (instruction sets), threads, system, python, torch, date (UTC, to the second).
    """
    import torch

    model, flags = _cpu()
    return {
        "cpu": model,
        "architecture": platform.machine(),
        "cores": cores(),
        "features": [name for name in _FEATURES if name in flags],
        "threads": threads or torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def cores() -> int:
    """Processors that this process may use; a container's or taskset's share, not the machine's number."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit(folder: str | os.PathLike[str]) -> str | None:
    """The commit of the repository that `folder` lies in, with `+changes` where tracked files differ from it; None outside one."""

    def git(*arguments: str) -> str | None:
        # No optional locks: another process may be committing.
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return None
    return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def _cpu() -> tuple[str, set[str]]:
    """Model's name and flags, as Linux tells them; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown", set()
    found = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    # Arm's kernel says `Features` and often gives no model's name.
    name = found.get("model name") or found.get("hardware") or platform.processor() or platform.machine()
    family, number = found.get("cpu family"), found.get("model")
    if family and number:
        name += f" (family {family}, model {number})"  # virtual machines often give a name that says nothing
    return name, set((found.get("flags") or found.get("features") or "").split())
