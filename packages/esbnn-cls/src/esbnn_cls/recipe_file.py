"""Reading recipes: YAML files with `base`, `--set key=value`, types checked, unknown keys answered with the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from esbnn_cls.recipe import Recipe, to_dict
from esbnn_core.errors import UserError

import yaml

__all__ = ["dump_recipe", "load_recipe", "read_layers", "shipped", "with_settings"]

_SHIPPED = Path(__file__).parent / "recipes"


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.stem for file in _SHIPPED.glob("*.yaml"))


def load_recipe(config: str | Path, settings: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """Read a recipe: a path, or the name of a shipped one; then apply settings (`key=value` texts, or key -> value).

    Raises UserError for a missing file, a key that no recipe has (naming the nearest), a value of the wrong type.
    """
    tree = read_layers(config)
    items = settings.items() if isinstance(settings, Mapping) else [_split(text) for text in settings]
    for key, value in items:
        path = _locate(str(key))
        inner = tree
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
    return build(tree, str(config))


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with some keys changed (dotted names as in `--set`)."""
    tree = to_dict(recipe)
    for key, value in settings.items():
        path = _locate(key)
        inner = tree
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = value
    return build(tree, "recipe")


def build(tree: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values; `where` is named in errors."""
    recipe: Recipe = _convert(Recipe, dict(tree), "", where)
    positive = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "accumulation": recipe.accumulation}
    for key, value in positive.items():
        if value < 1:
            raise UserError(f"{where}: {key}={value}; it must be at least 1")
    if recipe.batch_size % recipe.accumulation:
        raise UserError(f"{where}: accumulation={recipe.accumulation} does not divide batch_size={recipe.batch_size}")
    if recipe.loss.name == "distribution" and not recipe.loss.teacher:
        raise UserError(f"{where}: loss.name=distribution needs loss.teacher, the name of a timm model")
    if recipe.schedule.name == "table" and 0 not in recipe.schedule.table:
        raise UserError(f"{where}: schedule.table needs an entry for epoch 0")
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; reading it gives the same recipe."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, default_flow_style=None, width=130)


def read_layers(config: str | Path, beside: Path | None = None, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The raw tree of a recipe file with its bases merged below it."""
    path = _find(str(config), beside)
    if path in seen:
        raise UserError(f"{path}: `base` leads back to this recipe")
    try:
        tree = yaml.load(path.read_text(), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds a {type(tree).__name__}; a recipe is a mapping of keys to values")
    base = tree.pop("base", None)
    _convert(Recipe, {"model": "unset", **tree}, "", str(path))  # errors name the file that has the mistake
    return tree if base is None else _merge(read_layers(base, path.parent, (*seen, path)), tree)


def _find(config: str, beside: Path | None) -> Path:
    for candidate in (beside / config if beside else None, Path(config), _SHIPPED / f"{config}.yaml", _SHIPPED / config):
        if candidate is not None and candidate.is_file():
            return candidate.resolve()
    near = difflib.get_close_matches(Path(config).stem, shipped(), n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"{config}: no such recipe file, nor a shipped recipe of this name{hint}")


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings with names as keys are merged key by key; everything else is replaced (lists, and tables from epochs to rates)."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and all(isinstance(name, str) for name in value)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _split(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text}: wanted is key=value, for example --set optimizer.lr=0.05")
    try:
        return key.strip(), yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: the value is not valid YAML ({error})") from error


def _locate(key: str) -> tuple[str, ...]:
    """The full path of a key; the last part alone is enough where only one section has it (`lr`)."""
    parts = tuple(key.split("."))
    leaves = dict(_leaves())
    if len(parts) == 1 and parts not in leaves:
        ends = [leaf for leaf in leaves if leaf[-1] == key]
        if len(ends) == 1:
            return ends[0]
        if ends:
            raise UserError(f"--set {key}: which one? {', '.join('.'.join(end) for end in ends)}")
    inside = any(parts[: len(leaf)] == leaf and get_origin(hint) is dict for leaf, hint in leaves.items())
    if parts not in leaves and not inside:
        raise UserError(f"--set {key}: {_unknown(key, ['.'.join(leaf) for leaf in leaves])}")
    return parts


def _leaves(kind: Any = Recipe, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Full path and declared type of every key."""
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _leaves(hint, (*prefix, name))
        else:
            yield (*prefix, name), hint


def _unknown(key: str, known: Sequence[str]) -> str:
    """The text for a key that does not exist; nearness is judged by the whole key and by its last part."""

    def nearness(other: str) -> float:
        pairs = ((key, other), (key.rpartition(".")[2], other.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return f"unknown key {key!r}; the nearest known key is {max(known, key=nearness)!r}"


def _convert(kind: Any, value: Any, key: str, where: str) -> Any:
    """A plain value as the type that a field declares; UserError names the file, the key and what is wanted."""

    def wrong(wanted: str) -> UserError:
        return UserError(f"{where}: {key or 'recipe'} is {value!r}; wanted is {wanted}")

    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(next(a for a in args if a is not type(None)), value, key, where)
    if origin is Literal:
        if value not in args:
            raise wrong(f"one of {', '.join(map(str, args))}")
        return value
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise wrong("a mapping of keys to values")
        hints = get_type_hints(kind)
        dot = f"{key}." if key else ""
        for name in value:
            if name not in hints:
                raise UserError(f"{where}: {_unknown(f'{dot}{name}', [f'{dot}{hint}' for hint in hints])}")
        fields = {name: _convert(hints[name], item, f"{dot}{name}", where) for name, item in value.items()}
        for item in dataclasses.fields(kind):  # type: ignore[arg-type]
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING and item.name not in fields:
                raise UserError(f"{where}: the key {dot}{item.name} is missing")
        return kind(**fields)  # type: ignore[operator]
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong("a mapping of keys to values")
        return {_convert(args[0], k, key, where): _convert(args[1], v, f"{key}.{k}", where) for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise wrong("a list" if args[-1] is Ellipsis else f"a list of {len(args)} values")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        return tuple(_convert(k, item, f"{key}[{n}]", where) for n, (k, item) in enumerate(zip(inner, value, strict=True)))
    return _scalar(kind, value, wrong)


def _scalar(kind: type[Any], value: Any, wrong: Any) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    if kind is str:
        if not isinstance(value, str):
            raise wrong("a text")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and value != int(value)):
        raise wrong("a whole number" if kind is int else "a number")
    return kind(value)


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number (YAML 1.1 wants 1.0e-3), and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return mapping


def _add_floats() -> None:
    import re

    pattern = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    _Loader.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+0123456789"))


_add_floats()
