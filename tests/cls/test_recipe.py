"""Recipes: the shipped ones are whole and official, errors name the file, the key and the nearest known one."""

from __future__ import annotations

from pathlib import Path

import esbnn_cls.models  # noqa: F401
from esbnn_cls.optimizing import LearningRate, build_optimizer
from esbnn_cls.recipe import Optimizer, Recipe, Rule
from esbnn_cls.recipe_file import dump_recipe, load_recipe, shipped, with_settings
from esbnn_core.errors import UserError
from esbnn_core.methods import names

import pytest
import timm
import torch


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_names_a_model_and_survives_writing(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert timm.is_model(recipe.model)
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "r.yaml") == recipe
    if name.endswith("_short"):
        assert recipe.epochs == 20
        assert recipe.schedule.warmup_epochs <= 1
        assert all(m < 20 for m in (*recipe.schedule.milestones, *recipe.schedule.table))


def test_every_method_has_its_recipe_short_and_expanded() -> None:
    for method in names():
        for name in (f"{method}_resnet20_cifar10", f"{method}_resnet20_cifar10_short"):
            plain, expanded = load_recipe(name), load_recipe(f"es_{name}")
            assert expanded.model == f"es_{plain.model}" and expanded.model_args == {"tau": 2, "groups": 1}
            assert with_settings(expanded, {"model": plain.model, "model_args": {}}) == plain


# The official hyper-parameters: epochs, batch, optimizer, rate, decay.
OFFICIAL = {
    "irnet": (400, 128, "momentum", 0.1, 1e-4),
    "adabin": (400, 128, "momentum", 0.1, 1e-4),
    "recu": (600, 256, "momentum", 0.1, 5e-4),
    "rbnn": (1000, 256, "momentum", 0.1, 1e-4),
    "siman": (400, 256, "momentum", 0.1, 5e-4),
    "reste": (1000, 256, "momentum", 0.1, 1e-4),
    "bnn": (250, 256, "adam", 5e-3, 0.0),
    "xnor": (320, 128, "adam", 1e-2, 1e-5),
}


@pytest.mark.parametrize("method", OFFICIAL)
def test_official_figures(method: str) -> None:
    recipe = load_recipe(f"{method}_resnet20_cifar10")
    own = recipe.optimizer
    assert (recipe.epochs, recipe.batch_size, own.name, own.lr, own.weight_decay) == OFFICIAL[method]


def rates(recipe: Recipe, steps_per_epoch: int, steps: list[int]) -> list[float]:
    optimizer = build_optimizer(torch.nn.Linear(2, 2), with_settings(recipe, {"optimizer.rules": []}).optimizer)
    schedule = LearningRate(optimizer, recipe, steps_per_epoch)
    found = [schedule.set(step) for step in steps]
    assert found == [schedule.set(step) for step in reversed(steps)][::-1], "a pure function of the step"
    return found


def test_the_cosine_and_its_warm_up() -> None:
    # IR-Net steps the cosine after each epoch; ReCU warms up over five epochs and has the full rate in the fifth.
    assert rates(load_recipe("irnet_resnet20_cifar10"), 10, [0, 9, 2000, 3999]) == pytest.approx([0.1, 0.1, 0.05, 1.542e-06], rel=1e-3)
    warm = rates(load_recipe("recu_resnet20_cifar10"), 10, [0, 10, 20, 30, 40, 3020])
    assert warm == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.05])


def test_steps_and_lines_as_the_official_codes_have_them() -> None:
    iterations = [0, 1250, 2500, 18749, 18750, 37500, 56250]
    assert rates(load_recipe("irnet_resnet18_imagenet"), 625, iterations) == pytest.approx([0.2, 0.5, 0.8, 0.8, 0.08, 0.008, 8e-4])
    linear = rates(load_recipe("bireal_resnet18_imagenet"), 1, [0, 127, 255])
    assert linear == pytest.approx([1e-3 * 255 / 256, 5e-4, 0.0])
    assert rates(load_recipe("xnor_resnet20_cifar10"), 3, [0, 359, 360, 600]) == pytest.approx([0.01, 0.01, 0.001, 1e-4])
    assert rates(load_recipe("bnn_resnet20_cifar10"), 1, [0, 100, 101, 142, 184, 249]) == [5e-3, 5e-3, 1e-3, 5e-4, 1e-4, 1e-5]


def decays(model: str, recipe: str) -> dict[str, float]:
    built = timm.create_model(model)
    optimizer = build_optimizer(built, load_recipe(recipe).optimizer)
    by_id = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(by_id) == len(list(built.parameters()))
    return {name: by_id[id(p)] for name, p in built.named_parameters()}


def test_exceptions_from_weight_decay() -> None:
    siman = decays("resnet20_cifar_siman", "siman_resnet20_cifar10")
    free = {name.rpartition(".")[2] for name, decay in siman.items() if decay == 0}
    assert free == {"weight", "alpha"} and sum(decay == 0 for decay in siman.values()) == 36
    recu = decays("resnet18_recu", "recu_resnet18_imagenet")
    assert all(decay == 1e-4 for name, decay in recu.items() if name.endswith("alpha") or name.startswith(("stem.conv", "fc")))
    assert all(decay == 0 for name, decay in recu.items() if "norm" in name or "shortcut" in name)
    reactnet = decays("resnet18_reactnet", "reactnet_resnet18_imagenet_step1")
    assert reactnet["stages.0.0.unit1.conv.sign.bias"] == 1e-5 and reactnet["fc.weight"] == 0


def test_a_rule_that_takes_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match=r"rules\[0\].*takes no parameter"):
        build_optimizer(torch.nn.Linear(2, 2), Optimizer(rules=(Rule(name="conv"),)))
    with pytest.raises(UserError, match=r"optimizer\.name=addam"):
        build_optimizer(torch.nn.Linear(2, 2), Optimizer(name="addam"))


def test_bases_are_merged_and_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: m\nmodel_args: {tau: 2}\noptimizer: {lr: 1e-3, args: {eps: 1e-7}}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nmodel_args: {groups: 4}\noptimizer: {weight_decay: 5}\n")
    recipe = load_recipe(tmp_path / "b.yaml", ["lr=0.5", "data.mean=[0.5]", "model_args.tau=8", "ema.decay=0.99"])
    assert recipe.model_args == {"tau": 8, "groups": 4}
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.optimizer.args) == (0.5, 5.0, {"eps": 1e-7})
    assert recipe.data.mean == (0.5,) and recipe.ema.decay == 0.99
    (tmp_path / "a.yaml").write_text("base: b.yaml\nmodel: m\n")
    with pytest.raises(UserError, match="leads back"):
        load_recipe(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: m\nepoch: 3\n", "unknown key 'epoch'; the nearest known key is 'epochs'"),
        ("model: m\noptimizer: {learning_rate: 3}\n", "unknown key 'optimizer.learning_rate'; the nearest known key is 'optimizer"),
        ("model: m\noptimizer: {rules: [{of: binary, decay: 0}]}\n", r"'optimizer.rules\[0\].decay'.*'optimizer.rules\[0\].weight_decay'"),
        ("model: m\nepochs: many\n", "epochs is 'many'; wanted is a whole number"),
        ("model: m\nepochs: 2.5\n", "epochs is 2.5; wanted is a whole number"),
        ("model: m\nepochs: 0\n", "epochs=0; it must be at least 1"),
        ("model: m\ndata: {resize: 1}\n", "data.resize is 1; wanted is true or false"),
        ("model: m\naugment: {scale: 0.5}\n", "augment.scale is 0.5; wanted is a list of 2"),
        ("model: m\nprecision: int8\n", "precision is 'int8'; wanted is one of fp32, bf16, fp16"),
        ("model: m\nbatch_size: 10\naccumulation: 3\n", "accumulation=3 does not divide"),
        ("model: m\nepochs: 3\nepochs: 4\n", "a key stands twice"),
        ("model: [\n", "not valid YAML"),
        ("- model\n", "holds a list"),
        ("epochs: 3\n", "the key model is missing"),
        ("model: m\nloss: {name: distribution}\n", "needs loss.teacher"),
        ("base: other\nmodel: m\n", "no such recipe"),
    ],
)
def test_mistakes_in_a_recipe_name_the_file_and_the_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        load_recipe(tmp_path / "mine.yaml")
    assert "mine.yaml" in str(caught.value) or "other" in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("lrr=1", "nearest known key is 'optimizer.lr'"),
        ("name=x", "which one"),
        ("lr", "wanted is key=value"),
        ("epochs=x", "epochs is 'x'"),
        ("optimizer.lr.x=1", "unknown key"),
    ],
)
def test_mistakes_in_settings(setting: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe("irnet_resnet20_cifar10", [setting])


def test_a_recipe_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean recu_resnet20_cifar10"):
        load_recipe("recu_resnet20_cifar")
