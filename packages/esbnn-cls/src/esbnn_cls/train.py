"""The trainer: one loop for every recipe. A killed run goes on where its last checkpoint was, and ends with the same weights, bit for bit.

The order of a step: `begin_step` (schedules, projections of latent weights) - learning rate - zero_grad - micro-batches - finite check -
clip - optimizer - average of weights - count - checkpoint. Everything random is drawn from keys of (seed, epoch or step), so no hidden
state of loaders or generators has to survive.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from esbnn_cls.data import Geometry, Preprocess, Source, open_batches, open_source
from esbnn_cls.evaluate import Scores, score
from esbnn_cls.history import Board, write_csv
from esbnn_cls.losses import build_loss
from esbnn_cls.modelfolder import create, fit, make_config, versions
from esbnn_cls.optimizing import LearningRate, build_optimizer
from esbnn_cls.recipe import Recipe, to_dict
from esbnn_cls.recipe_file import dump_recipe
from esbnn_cls.state import RunFolder, TrainingState, optimizer_tensors, restore_optimizer
from esbnn_core import rng
from esbnn_core.checkpoint import load_model
from esbnn_core.errors import RunError, UserError
from esbnn_core.files import write_file
from esbnn_core.progress import Bar, say
from esbnn_core.training import Progress, begin_step, binary_layers, ema_refresh, flip_rate, watch

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from timm.data import Mixup  # type: ignore[attr-defined]  # timm re-exports without saying so
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]  # timm re-exports without saying so
from torch import Tensor, nn

__all__ = ["train"]

# Keys that may differ between a run and its continuation: they do not change its weights.
_FREE = ("output", "data.workers", "data.path", "data.storage", "threads")


def train(recipe: Recipe, out: str | os.PathLike[str], *, resume: bool = False, shown: bool = True) -> dict[str, Any]:
    """Train by a recipe into the folder `out`; returns the last row of the history with the best top-1 added.

    resume: go on from the folder's last checkpoint (from the beginning where it has none yet); without it, a folder that already holds
    a run is an error. Raises UserError for mistakes in recipe and data, RunError where the loss is not finite or the disk is full.
    """
    return _Run(recipe, Path(out), resume, shown).train()


class _Run:
    def __init__(self, recipe: Recipe, out: Path, resume: bool, shown: bool) -> None:
        self.recipe, self.out = recipe, out
        self.folder = RunFolder(out)
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
        precision = {"fp32": "no"}.get(recipe.precision, recipe.precision)
        # Its state is global and refuses another precision; a process may train more than once. The process group stays.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[ddp])
        self.device, self.rank, self.world = self.accelerator.device, self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.rank == 0
        self.shown = shown and self.main
        if recipe.batch_size % (recipe.accumulation * self.world):
            raise UserError(
                f"batch_size={recipe.batch_size} cannot be divided into accumulation={recipe.accumulation} parts for {self.world} processes"
            )
        self.geometry = Geometry(recipe.batch_size, recipe.accumulation, self.world, self.rank)
        checkpoint = self._find_checkpoint(resume)
        found = None if checkpoint is None else self._read(checkpoint)
        self.state = TrainingState() if found is None else found[0]
        self._set_threads(recipe.threads, self.state.threads if found else None)
        self._build()
        if found is not None:
            self._restore(str(checkpoint), *found)
        self.state.recipe, self.state.versions = to_dict(recipe), versions()
        self.state.world, self.state.threads = self.world, torch.get_num_threads()
        if self.world > 1:
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message=".*broadcast_buffers", category=FutureWarning
                )  # its successor is not in torch 2.6
                self.wrapped = self.accelerator.prepare_model(self.model)

    # -- set-up --------------------------------------------------------------------------------------------------------------
    def _find_checkpoint(self, resume: bool) -> Path | None:
        found = self.folder.latest() if self.folder.checkpoints.is_dir() else None
        if found is not None and not resume:
            raise UserError(f"{self.out}: holds a run already ({found.name}); continue it with --resume, or give another --out")
        if found is None and resume and self.main:
            say(f"{self.out}: no checkpoint yet, beginning at the start")
        return found

    def _read(self, checkpoint: Path) -> tuple[TrainingState, dict[str, Tensor], dict[str, Tensor]]:
        """The checkpoint's contents, after checking that it belongs to this recipe."""
        found = self.folder.load(checkpoint)
        before, now = _flat(found[0].recipe), _flat(to_dict(self.recipe))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key) and not key.startswith(_FREE):
                raise UserError(
                    f"{self.out}: was trained with {key}={before.get(key)}, now it is {now.get(key)}; resume with the recipe it began with "
                    f"({self.out / 'recipe.yaml'})"
                )
        return found

    def _set_threads(self, wanted: int | None, before: int | None) -> None:
        """Set the number of threads before anything is built: another number sums in another order and gives another run."""
        threads = wanted or before
        if threads is not None:
            torch.set_num_threads(threads)
        if before is not None and torch.get_num_threads() != before and self.main:
            say(f"note: the run began with {before} threads and goes on with {torch.get_num_threads()}: not bit for bit the same")

    def _build(self) -> None:
        recipe, data = self.recipe, self.recipe.data
        training = open_source(data.path, data.train)
        testing = open_source(data.path, data.test)
        self._check_classes(training, testing)
        args = {"num_classes": len(training.class_names), **recipe.model_args}
        rng.seed_all(recipe.seed, "init")
        self.model = create(recipe.model, args)
        for _, layer in binary_layers(self.model):
            layer.weight_mode = recipe.weight_mode
        if recipe.init is not None:
            fit(self.model, load_model(recipe.init)[0], recipe.init)
        self.preprocess = Preprocess.of_model(
            self.model,
            int(args.get("in_chans", 3)),
            img_size=data.img_size,
            mean=data.mean,
            std=data.std,
            interpolation=data.interpolation,
            crop_pct=data.crop_pct,
        )
        self.arch_args, self.class_names = args, training.class_names
        common: Any = {"resize": data.resize, "workers": data.workers, "device": self.device, "shown": self.shown}
        self.train_batches = open_batches(training, self.preprocess, augment=recipe.augment, storage=data.storage, **common)
        self.test_batches = open_batches(testing, self.preprocess, storage=data.storage, **common)
        self.steps_per_epoch = len(self.train_batches) // recipe.batch_size
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size={recipe.batch_size} is more than the {len(self.train_batches)} training images of {training.where}"
            )
        self.steps = self.steps_per_epoch * recipe.epochs
        self.wrapped = self.model.to(self.device)
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.lr = LearningRate(self.optimizer, recipe, self.steps_per_epoch)
        watch(self.optimizer, self.model)
        self.ema = None if recipe.ema.decay is None else ModelEmaV3(self.model, decay=recipe.ema.decay, use_warmup=recipe.ema.warmup)
        self.criterion = build_loss(recipe.loss, int(args["num_classes"]), self.device)
        augment = recipe.augment
        self.mixup = None
        if augment.mixup or augment.cutmix:
            smoothing = recipe.loss.label_smoothing
            self.mixup = Mixup(augment.mixup, augment.cutmix, label_smoothing=smoothing, num_classes=int(args["num_classes"]))
        self.bits = flip_rate(self.model, {})[1]

    def _check_classes(self, training: Source, testing: Source) -> None:
        if training.class_names != testing.class_names:
            only = sorted(set(training.class_names) ^ set(testing.class_names))[:4]
            raise UserError(f"{training.where}: training and test split have different classes ({', '.join(only)} are in one only)")
        wanted = self.recipe.model_args.get("num_classes")
        if wanted is not None and wanted < len(training.class_names):
            raise UserError(f"model_args.num_classes={wanted}, but {training.where} has {len(training.class_names)} classes")

    def _restore(self, where: str, state: TrainingState, model: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        if self.ema is not None:
            fit(self.ema.module, model, where)
            model = {key[8:]: value for key, value in tensors.items() if key.startswith("weights/")}
        fit(self.model, model, where)
        restore_optimizer(self.optimizer, self.model, tensors, state.groups, where)
        self.bits = {key[5:]: value.bool().to(self.device) for key, value in tensors.items() if key.startswith("bits/")}
        if state.scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        if state.world != self.world and self.main:
            say(f"note: the run began with {state.world} processes and goes on with {self.world}: not bit for bit the same")

    # -- the loop ------------------------------------------------------------------------------------------------------------
    def train(self) -> dict[str, Any]:
        if self.main:
            self.folder.clean(self.state)
            write_file(self.out / "recipe.yaml", dump_recipe(self.recipe).encode())
            write_csv(self.out / "metrics.csv", self.state.history)
        board = Board(self.out / "tensorboard", self.main and self.recipe.output.tensorboard, self.state.step)
        first = self.state.step // self.steps_per_epoch
        for epoch in range(first, self.recipe.epochs):
            self._epoch(epoch)
            if self.main:
                board.add(self.state.history[-1])
                self._report(self.state.history[-1])
        board.close()
        if self.world > 1:
            dist.barrier()
        return {**self.state.history[-1], "best_top1": self.state.best_top1, "out": str(self.out)}

    def _epoch(self, epoch: int) -> None:
        state, done = self.state, self.state.step % self.steps_per_epoch
        began = time.perf_counter() - state.seconds
        self.wrapped.train()
        batches = self.train_batches.training(self.geometry, self.recipe.seed, epoch, start=done)
        title = f"epoch {epoch + 1}/{self.recipe.epochs}"
        with Bar(self.steps_per_epoch, title, start=done, shown=self.shown) as bar:
            for inside in range(done, self.steps_per_epoch):
                lr = self._step(batches)
                last = inside + 1 == self.steps_per_epoch
                bar.advance(loss=state.sums[0] / state.sums[2], top1=100 * state.sums[1] / state.sums[2])
                every = self.recipe.output.save_steps
                if every and state.step % every == 0 and not last:
                    state.seconds = time.perf_counter() - began
                    self._save()
        self._end_epoch(epoch, lr, began)

    def _step(self, batches: Any) -> float:
        """One optimizer step; returns its learning rate."""
        recipe, state = self.recipe, self.state
        begin_step(self.model, Progress.at(state.step, self.steps_per_epoch, recipe.epochs, recipe.progress))
        lr = self.lr.set(state.step)
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, dtype=torch.float64)
        for micro in range(recipe.accumulation):
            x, labels = next(batches)
            rng.seed_all(recipe.seed, "step", state.step, micro, self.rank)
            target = labels
            if self.mixup is not None:
                x, target = self.mixup(x, labels)
            waiting = self.world > 1 and micro + 1 < recipe.accumulation
            with self.wrapped.no_sync() if waiting else nullcontext():  # type: ignore[operator]
                with self.accelerator.autocast():
                    logits = self.wrapped(x)
                loss = self.criterion(logits.float(), target, x)
                self.accelerator.backward(loss / recipe.accumulation)
            hits = (logits.argmax(1) == (labels if self.mixup is None else target.argmax(1))).sum()
            # One transfer from the device for both numbers.
            both = torch.stack([loss.detach().double(), hits.double()]).cpu()
            sums += torch.stack([both[0] * len(labels), both[1], torch.tensor(float(len(labels)), dtype=torch.float64)])
        if self.world > 1:
            sums = self._over_ranks(sums)
        if not math.isfinite(float(sums[0])):
            raise RunError(
                f"{self.out}: the loss is {float(sums[0] / sums[2])} at step {state.step} "
                f"(epoch {state.step // self.steps_per_epoch + 1}); "
                "what was saved before is whole; try a lower optimizer.lr, a warm-up or clip_grad"
            )
        self._update()
        state.step += 1
        state.sums = tuple(a + b for a, b in zip(state.sums, sums.tolist(), strict=True))  # type: ignore[assignment]
        return lr

    def _update(self) -> None:
        scaler = self.accelerator.scaler
        if self.recipe.clip_grad is not None:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, step=self.state.step)

    def _end_epoch(self, epoch: int, lr: float, began: float) -> None:
        state, output = self.state, self.recipe.output
        rate, self.bits = flip_rate(self.model, self.bits)
        loss, hits, images = state.sums
        row: dict[str, Any] = {"epoch": epoch + 1, "step": state.step, "lr": lr}
        row |= {"train_loss": loss / images, "train_top1": 100 * hits / images, "flip_rate": rate if self.bits else None}
        best = False
        if (epoch + 1) % output.eval_every == 0 or epoch + 1 == self.recipe.epochs:
            scores = self._evaluate()
            row |= {"eval_loss": scores.loss, "eval_top1": scores.top1, "eval_top5": scores.top5}
            if not math.isfinite(scores.loss):
                row["eval_loss"] = None
            best = scores.top1 > state.best_top1
        if best:
            state.best_top1, state.best_step = row["eval_top1"], state.step
        row["seconds"] = round(time.perf_counter() - began, 3)
        state.history.append(row)
        state.sums, state.seconds = (0.0, 0.0, 0.0), 0.0
        self._save(best)
        if self.main:
            write_csv(self.out / "metrics.csv", state.history)

    def _evaluate(self) -> Scores:
        if self.world > 1:  # replicas differ in running statistics; what is saved is the first one's
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)
        sums = score(self._deliverable(), self.test_batches, rank=self.rank, world=self.world)
        return Scores.of_sums(self._over_ranks(sums) if self.world > 1 else sums)

    def _over_ranks(self, sums: Tensor) -> Tensor:
        moved = sums.to(self.device)
        dist.all_reduce(moved)
        return moved.cpu()

    def _deliverable(self) -> nn.Module:
        """The model that is evaluated and saved: the average of the weights where one is kept."""
        if self.ema is None:
            return self.model
        ema_refresh(self.ema.module, self.model)
        return self.ema.module

    def _save(self, best: bool = False) -> None:
        if self.main:
            state = self.state
            config = make_config(
                self.recipe.model,
                self.arch_args,
                self.preprocess,
                self.class_names,
                weight_mode=self.recipe.weight_mode,
                training={"step": state.step, "epochs": state.step / self.steps_per_epoch, "best_top1": max(state.best_top1, 0.0)},
            )
            model = self._deliverable().state_dict()
            tensors, state.groups = optimizer_tensors(self.optimizer, self.model)
            if self.ema is not None:
                tensors |= {f"weights/{name}": tensor for name, tensor in self.model.state_dict().items()}
            tensors |= {f"bits/{name}": tensor.to(torch.uint8) for name, tensor in self.bits.items()}
            if self.accelerator.scaler is not None:
                state.scaler = self.accelerator.scaler.state_dict()
            if best:
                self.folder.save_best(state.step, model, config)
            self.folder.save(state, model, config, tensors)
        if self.world > 1:
            dist.barrier()

    def _report(self, row: dict[str, Any]) -> None:
        parts = [f"epoch {row['epoch']}/{self.recipe.epochs}", f"lr {row['lr']:.4g}"]
        parts.append(f"train loss {row['train_loss']:.3f} top-1 {row['train_top1']:.2f}")
        if row.get("eval_top1") is not None:
            parts.append(f"test loss {row['eval_loss'] or math.nan:.3f} top-1 {row['eval_top1']:.2f} top-5 {row['eval_top5']:.2f}")
        if row["flip_rate"] is not None:
            parts.append(f"flips {100 * row['flip_rate']:.2f} %")
        if self.shown:
            say(" | ".join([*parts, f"{row['seconds']:.1f} s"]))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
