"""The command `esbnn`: methods, models, ops. Each command imports what it needs; the help has to come at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from esbnn_core.cli_support import run_main, write_json

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (the run failed) or 2 (a mistake in the input)."""
    options = _parser().parse_args(arguments)
    return run_main(lambda: options.run(options), "esbnn")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="esbnn",
        description="Binary neural networks, plain and with expanding-and-shrinking (ES-BNN).",
        epilog="`python -m esbnn_core` prints versions.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    listing = commands.add_parser("methods", help="list the binarization methods and their papers", description="List the methods.")
    listing.add_argument("--json", metavar="FILE", help="write them as JSON")
    listing.set_defaults(run=_methods)

    models = commands.add_parser("models", help="list the models of the installed packages", description="List models by name.")
    models.add_argument("pattern", nargs="?", metavar="PATTERN", help="part of a name, or a pattern such as 'es_*_cifar_*'")
    models.set_defaults(run=_models)

    ops = commands.add_parser(
        "ops",
        help="count a model's operations, parameters and bytes",
        description="Count a model's operations (FLOPs, BOPs, OPs, OPs+), parameters, bytes and representation capacity by running it.",
    )
    ops.add_argument("name", nargs="?", metavar="NAME", help="see `esbnn models`; not needed with --checkpoint")
    ops.add_argument("--input", metavar="CxHxW", help="for example 3x224x224 (default: the model's own size)")
    ops.add_argument("--model-args", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for example tau=2 groups=1 head=n")
    ops.add_argument("--checkpoint", metavar="FOLDER", help="count the model of a checkpoint folder")
    ops.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    ops.set_defaults(run=_ops)
    return parser


def _methods(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from esbnn_core import methods

    known = [methods.get(name) for name in methods.names()]
    if options.json is not None:
        entries = [{"name": m.name, "title": m.title, "paper": asdict(m.paper), "options": m.options()} for m in known]
        write_json(options.json, {"methods": entries})
    for method in known:
        paper = method.paper
        print(f"{method.name:<10}{method.title} ({paper.venue})\n{'':<10}{paper.authors}: {paper.title}. {paper.url}")
    return 0


def _models(options: argparse.Namespace) -> int:
    from fnmatch import fnmatchcase

    from esbnn_core.catalogs import model_names
    from esbnn_core.errors import UserError

    pattern = options.pattern or "*"
    if not any(character in pattern for character in "*?["):
        pattern = f"*{pattern}*"
    found = [name for name in model_names() if fnmatchcase(name, pattern)]
    if not found:
        raise UserError(f"no model's name matches {pattern!r}; `esbnn models` without a pattern lists all of them")
    print("\n".join(found))
    return 0


def _ops(options: argparse.Namespace) -> int:
    from esbnn_core.catalogs import create_model

    name, arguments, size = _chosen(options)
    size = _size(options.input) if options.input else size
    model = create_model(name, arguments)
    size = size or _own_size(name, model)

    from esbnn_core.accounting import count_ops

    report = count_ops(model, size)
    if options.json is not None:
        write_json(options.json, {"model": name, "model_args": arguments, "input_size": list(size), **report.as_dict()})
    print(name)
    print(report.to_table())
    return 0


def _chosen(options: argparse.Namespace) -> tuple[str, dict[str, Any], tuple[int, ...] | None]:
    """Name, arguments and, from a checkpoint, the input size of the model to count."""
    from esbnn_core.errors import UserError

    if options.checkpoint is None:
        if options.name is None:
            raise UserError("ops needs a model's NAME or --checkpoint FOLDER; `esbnn models` lists the names")
        return options.name, dict(_argument(text) for text in options.model_args), None
    from pathlib import Path

    from esbnn_core.checkpoint import CONFIG, load_json

    file = Path(options.checkpoint) / CONFIG
    config = load_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("arch"), str) or not isinstance(config.get("model_args"), dict):
        raise UserError(f"{file}: has no `arch` and `model_args`: not a checkpoint of these packages")
    if options.name not in (None, config["arch"]):
        raise UserError(f"{file}: holds {config['arch']!r}, not {options.name!r}; leave out the name")
    if options.model_args:
        raise UserError(f"{file}: says how its model is built; leave out --model-args")
    size = (config.get("preprocessing") or {}).get("input_size")
    return config["arch"], config["model_args"], tuple(size) if size else None


def _argument(text: str) -> tuple[str, Any]:
    """KEY=VALUE with a JSON value, or else a text."""
    import json

    from esbnn_core.errors import UserError

    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise UserError(f"--model-args {text!r}: wanted is KEY=VALUE, for example tau=2 or groups=[1,1,2,2]")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _size(text: str) -> tuple[int, ...]:
    from esbnn_core.errors import UserError

    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--input {text!r}: wanted is channels x height x width, for example 3x224x224")
    return tuple(int(part) for part in parts)


def _own_size(name: str, model: Any) -> tuple[int, ...]:
    from esbnn_core.errors import UserError

    config = getattr(model, "pretrained_cfg", None) or {}
    if "input_size" not in config:
        raise UserError(f"{name} has no input size of its own; give --input CxHxW, for example 3x224x224")
    return tuple(config["input_size"])


if __name__ == "__main__":
    sys.exit(main())
