"""Trains a tiny network in child processes, kills them, resumes, and prints whether the end is that of an unbroken run.

A script of its own: torch is imported once and every training is a fork, which saves seconds a run. Forking is safe here since the
parent computes nothing with torch. usage: resume_runs.py MODE FOLDER RECIPE.yaml [KILLS]
"""

from __future__ import annotations

import csv
import hashlib
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from esbnn_cls.recipe_file import load_recipe
from esbnn_cls.train import train
from esbnn_core.checkpoint import load_json, load_tensors

import sklearn.datasets  # noqa: F401  (loaded once, for all children)
import torch

torch.set_num_threads(1)
CALLS = ("mkdir", "fsync", "rename", "replace", "symlink", "rmdir")  # every step of a write goes through one of them


def in_child(recipe: Path, out: Path, kill_at: int | None = None) -> int:
    """Fork a training of `out` (resumed where it can be); kill_at: SIGKILL at that call of the operating system's file operations."""
    child = os.fork()
    if child:
        return child
    # The descriptors too: whoever waits for our output must not wait for a trainer's or its workers'.
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        if kill_at is not None:
            _kill_at_call(kill_at)
        train(load_recipe(recipe), out, resume=out.exists(), shown=False)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _kill_at_call(number: int) -> None:
    left = number

    def counted(name: str):
        real = getattr(os, name)

        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, counted(name))


def wait(child: int) -> str:
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    return "done" if os.WEXITSTATUS(status) == 0 else "failed"


def fingerprint(out: Path) -> str:
    """Of everything that a run leaves: weights, buffers, averages, momenta, codes, random states, numbers, metrics (but the seconds)."""
    digest = hashlib.sha256()
    for tensors in (load_tensors(out / "last/model.safetensors"), load_tensors(out / "last/training_state/tensors.safetensors")):
        for name, tensor in sorted(tensors.items()):
            digest.update(
                f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
    state = load_json(out / "last/training_state/state.json")
    digest.update(repr([state["step"], state["best_step"], state["best_top1"], state["sums"]]).encode())
    with open(out / "metrics.csv", newline="") as file:
        digest.update(repr([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]).encode())
    digest.update(repr(sorted((p.name, os.readlink(p)) for p in out.iterdir() if p.is_symlink())).encode())
    digest.update(repr(sorted(p.name for p in (out / "checkpoints").iterdir())).encode())
    return digest.hexdigest()


def check_names(out: Path) -> None:
    """After any kill, what a reader can see is whole."""
    for link in ("last", "best"):
        if (out / link).is_symlink():
            load_tensors(out / link / "model.safetensors")
            load_json(out / link / "config.json")


def main(mode: str, folder: str, recipe: str, kills: str = "10") -> int:
    base, config = Path(folder), Path(recipe)
    began = time.monotonic()
    if wait(in_child(config, base / "whole")) != "done":
        print((base / "whole.log").read_text())
        return 1
    seconds = time.monotonic() - began
    wanted = fingerprint(base / "whole")
    draw = random.Random(7)
    done = 0
    bad = []
    if mode == "random":
        out = base / "broken"
        while done < int(kills):
            child = in_child(config, out)
            time.sleep(draw.uniform(0.0, seconds * 0.6))
            os.kill(child, signal.SIGKILL)
            result = wait(child)
            if result == "failed":
                print((base / "broken.log").read_text())
                return 1
            if result == "done":  # it came to its end before: begin a new one
                bad += [] if fingerprint(out) == wanted else [f"kill {done}"]
                out = base / f"broken{done}"
                continue
            done += 1
            check_names(out)
        bad += [] if wait(in_child(config, out)) == "done" and fingerprint(out) == wanted else ["end"]
    else:
        # One checkpoint's write takes about 25 calls: `kills` points, spread over the first two or three writes.
        for at in sorted(draw.sample(range(1, 70), int(kills))):
            out = base / f"at{at}"
            if wait(in_child(config, out, kill_at=at)) != "killed":
                bad.append(f"call {at}: not killed")
            check_names(out)
            done += 1
            if wait(in_child(config, out)) != "done" or fingerprint(out) != wanted:
                bad.append(f"call {at}")
    print(f"{done} kills, {len(bad)} different: {bad}; unbroken run {seconds:.2f} s, {wanted[:12]}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
