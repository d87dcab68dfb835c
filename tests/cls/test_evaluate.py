"""Evaluation: the figures are right for any batch and share, a checkpoint folder is all that it needs."""

from __future__ import annotations

import json
from pathlib import Path

from esbnn_cls.data import MemoryBatches, Preprocess
from esbnn_cls.evaluate import Scores, evaluate, score
from esbnn_cls.modelfolder import create, load_classifier, make_config, save_classifier
from esbnn_core.errors import UserError

import pytest
import torch
from torch import nn

ARGS = {"widths": [8, 8, 16], "depths": [1, 1, 1], "in_chans": 1, "num_classes": 10}
DIGITS = Preprocess((1, 8, 8), (0.3,), (0.4,))


class Table(nn.Module):
    """A network whose logits are looked up by the first pixel."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[(x[:, 0, 0, 0] * 255).round().long()]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = create("resnet20_cifar_irnet", ARGS)
    save_classifier(tmp_path / "model", model, make_config("resnet20_cifar_irnet", ARGS, DIGITS))
    return tmp_path / "model"


@pytest.mark.parametrize("batch", [3, 16, 64])
def test_figures_are_exact(batch: int) -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(50, 10), torch.randint(0, 10, (50,))
    images = torch.arange(50, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    batches = MemoryBatches(images, labels, (0.0,), (1.0,))
    found = Scores.of_sums(score(Table(logits), batches, batch=batch))
    order = logits.argsort(1, descending=True)
    assert found.top1 == pytest.approx(100 * (order[:, 0] == labels).float().mean().item())
    assert found.top5 == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).float().mean().item())
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item()) and found.images == 50
    shares = sum(score(Table(logits), batches, batch=batch, rank=rank, world=3) for rank in range(3))
    assert Scores.of_sums(torch.as_tensor(shares)).top1 == found.top1


def test_the_models_mode_is_put_back_and_nothing_is_drawn() -> None:
    model = create("resnet20_cifar_irnet", ARGS).train()
    batches = MemoryBatches(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), (0.3,), (0.4,))
    state = torch.default_generator.get_state()
    score(model, batches)
    assert model.training and torch.equal(state, torch.default_generator.get_state())


def test_a_folder_and_a_dataset_are_enough(checkpoint: Path) -> None:
    found = evaluate(checkpoint, "digits", shown=False)
    assert set(found) == {"top1", "top5", "loss", "images", "checkpoint", "data", "split"}
    assert found["images"] == 360 and evaluate(checkpoint, "digits", split="train", shown=False)["images"] == 1437
    json.dumps(found)


def test_a_model_comes_back_from_its_folder(checkpoint: Path) -> None:
    model, config = load_classifier(checkpoint)
    torch.manual_seed(0)
    again = create("resnet20_cifar_irnet", ARGS)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert config["versions"]["torch"] == torch.__version__.split("+")[0] or config["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arch": "resnet20_cifar_irnett"}, r"config\.json: no model is called.*resnet20_cifar_irnet"),
        ({"model_args": {**ARGS, "widths": [8, 8, 32]}}, r"model\.safetensors: the weights do not fit the model: .*stages\.2"),
        ({"model_args": {**ARGS, "size": 3}}, "cannot be built"),
        ({"arch": None}, "not a checkpoint of this package"),
        ({"preprocessing": {"mean": [1]}}, r"config\.json: `preprocessing`"),
    ],
)
def test_what_does_not_fit_is_one_line(checkpoint: Path, change: dict, words: str) -> None:
    file = checkpoint / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=words) as caught:
        evaluate(checkpoint, "digits", shown=False)
    assert "\n" not in str(caught.value)


def test_data_of_another_task(checkpoint: Path) -> None:
    batches = MemoryBatches(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([3, 12]), (0.3,), (0.4,))
    with pytest.raises(UserError, match="a label 12, the model only 10 classes"):
        score(load_classifier(checkpoint)[0], batches)
