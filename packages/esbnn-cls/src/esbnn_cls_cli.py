"""The command `esbnn-cls`: train, eval, import.

A top-level module of its own, since importing anything inside `esbnn_cls` registers the models with timm, which takes seconds; the help
has to come at once. Each command imports what it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from esbnn_core.cli_support import run_main, write_json

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (the run failed) or 2 (a mistake in the input)."""
    options = _parser().parse_args(arguments)
    return run_main(lambda: options.run(options), "esbnn-cls")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="esbnn-cls", description="Train, evaluate and import binary image classifiers.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    dataset = "folder (parquet, images, CIFAR), tar archive, hfds/NAME or digits"

    train = commands.add_parser("train", help="train a model by a recipe", description="Train a model by a recipe.")
    train.add_argument("--config", metavar="RECIPE", help="YAML file or name of a shipped recipe (with --resume: default OUT/recipe.yaml)")
    train.add_argument("--data", metavar="PATH", help=dataset)
    train.add_argument("--out", metavar="DIR", help="folder for checkpoints and metrics (default: runs/RECIPE-sSEED)")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    train.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    train.add_argument("--seed", type=int, metavar="S", help="instead of the recipe's")
    train.add_argument("--threads", type=int, metavar="T", help="CPU threads; part of what makes a run repeatable")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="change any key of the recipe")
    train.add_argument("--json", metavar="FILE", help="write the final figures as JSON")
    train.add_argument("--list", action="store_true", help="list the shipped recipes")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="evaluate a checkpoint", description="Evaluate a checkpoint folder on a dataset.")
    evaluate.add_argument("checkpoint", metavar="DIR", help="checkpoint folder")
    evaluate.add_argument("--data", required=True, metavar="PATH", help=dataset)
    evaluate.add_argument("--split", default="test", help="default: test")
    evaluate.add_argument("--batch-size", type=int, default=256, metavar="N", help="default: 256")
    evaluate.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode large images")
    evaluate.add_argument("--threads", type=int, metavar="T", help="CPU threads")
    evaluate.add_argument("--device", default=None, help="cpu, cuda (default: cuda where there is one)")
    evaluate.add_argument("--resize", action="store_true", help="resize small images of another size than the model's")
    evaluate.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    evaluate.set_defaults(run=_evaluate)

    importer = commands.add_parser("import", help="convert an official checkpoint", description="Convert an official checkpoint.")
    importer.add_argument("file", metavar="FILE", help="the authors' file (.pth, .pth.tar, .th)")
    importer.add_argument("--from", required=True, metavar="METHOD", dest="method", help="whose code wrote it: irnet, recu, adabin ...")
    importer.add_argument("--arch", required=True, help="architecture without the method, for example resnet20_cifar")
    importer.add_argument("--out", required=True, metavar="DIR", help="checkpoint folder to write")
    importer.set_defaults(run=_import)
    return parser


def _train(options: argparse.Namespace) -> int:
    from pathlib import Path

    from esbnn_core.errors import UserError

    if options.list:
        from esbnn_cls.recipe_file import shipped

        print("\n".join(shipped()))
        return 0
    config = options.config
    if config is None and options.resume and options.out:
        config = str(Path(options.out) / "recipe.yaml")
    if config is None:
        raise UserError("train needs --config RECIPE; --list shows the shipped ones")
    from esbnn_cls.recipe_file import load_recipe, with_settings
    from esbnn_cls.train import train

    recipe = load_recipe(config, options.settings)
    given = {"data.path": options.data, "epochs": options.epochs, "seed": options.seed, "threads": options.threads}
    recipe = with_settings(recipe, {key: value for key, value in given.items() if value is not None})
    out = options.out or f"runs/{Path(config).stem}-s{recipe.seed}"
    figures = train(recipe, out, resume=options.resume)
    return _answer(figures, options.json)


def _evaluate(options: argparse.Namespace) -> int:
    from esbnn_cls.evaluate import evaluate

    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    figures = evaluate(
        options.checkpoint,
        options.data,
        split=options.split,
        batch=options.batch_size,
        workers=options.workers,
        resize=options.resize,
        device=device,
    )
    return _answer(figures, options.json)


def _import(options: argparse.Namespace) -> int:
    from esbnn_cls.importers import import_checkpoint

    report = import_checkpoint(options.file, options.method, options.arch, options.out)
    print(report.describe())
    print(f"written to {options.out}")
    return 0


def _answer(figures: dict[str, Any], file: str | None) -> int:
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one answers
        return 0
    if file is not None:
        write_json(file, figures)
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
