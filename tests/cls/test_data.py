"""Datasets: every kind is recognised by what is there, broken images are named, batches depend on keys alone."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from esbnn_cls.data import Geometry, MemoryBatches, Preprocess, Source, open_batches, open_source
from esbnn_cls.data.cache import decoded
from esbnn_cls.data.parquet import find_columns
from esbnn_cls.data.stream import StreamBatches
from esbnn_cls.recipe import Augment
from esbnn_core.errors import UserError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

CLASSES = ("cat", "dog")
HALF = Preprocess((3, 8, 8), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(number: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def png(number: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(number, size)).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(file: Path, count: int, described: bool = True, broken: int | None = None) -> None:
    """A small file in Hugging Face's layout; without the description it is a plain parquet file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(i) if i != broken else b"\x89PNG no", "path": f"{i}.png"} for i in range(count)]
    table = pa.table({"id": list(range(count)), "picture": images, "label": [i % 2 for i in range(count)]})
    if described:
        features = '{"info": {"features": {"picture": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}'
        table = table.replace_schema_metadata({"huggingface": features})
    pq.write_table(table, file, row_group_size=4)


def write_images(folder: Path, count: int, size: int = 8) -> None:
    for i in range(count):
        (folder / CLASSES[i % 2]).mkdir(parents=True, exist_ok=True)
        (folder / CLASSES[i % 2] / f"{i}.png").write_bytes(png(i, size))


def check(source: Source, count: int) -> None:
    assert (len(source), source.class_names) == (count, CLASSES)
    for index in range(count):
        found = np.asarray(source.image(index).convert("RGB"))
        number = next(n for n in range(count) if np.array_equal(pixels(n), found))
        assert source.labels[index] == number % 2


@pytest.mark.parametrize(
    "layout", ["{}-00000.parquet", "{}.parquet", "data/{}-00000-of-00001.parquet", "{}/0000.parquet", "default/{}/0.parquet"]
)
def test_parquet_folders_are_recognised(tmp_path: Path, layout: str) -> None:
    write_parquet(tmp_path / "set" / layout.format("train"), 6)
    write_parquet(tmp_path / "set" / layout.format("test"), 4)
    check(open_source(tmp_path / "set", "train"), 6)
    check(open_source(str(tmp_path / "set"), "test"), 4)
    with pytest.raises(UserError, match=r"no split 'valid'.*test, train"):
        open_source(tmp_path / "set", "valid")


def test_parquet_in_several_files_keeps_the_order(tmp_path: Path) -> None:
    for part in range(3):
        write_parquet(tmp_path / f"train-0000{part}.parquet", 5)
    source = open_source(tmp_path, "train")
    assert len(source) == 15 and np.array_equal(np.asarray(source.image(12)), pixels(2))


def test_columns_without_a_description_are_found_by_type(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", 4, described=False)
    source = open_source(tmp_path, "train")
    assert source.class_names == ("0", "1") and np.array_equal(np.asarray(source.image(3)), pixels(3))
    schema = pa.schema({"jpg": pa.binary(), "width": pa.int32(), "fine_label": pa.int64(), "text": pa.string()})
    assert find_columns(schema, "f")[:2] == ("jpg", "fine_label")
    with pytest.raises(UserError, match="no label column among jpg: binary"):
        find_columns(pa.schema({"jpg": pa.binary()}), "f")


def test_image_folders_and_tar_archives(tmp_path: Path) -> None:
    write_images(tmp_path / "set" / "train", 6)
    write_images(tmp_path / "set" / "val", 4)
    check(open_source(tmp_path / "set", "train"), 6)
    check(open_source(tmp_path / "set", "test"), 4)
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            archive.add(tmp_path / "set" / split, arcname=".")
    check(open_source(tmp_path / "train.tar", "train"), 6)
    check(open_source(tmp_path, "validation"), 4)


def test_torchvisions_cifar_is_checked_before_it_is_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match="not the whole original CIFAR10"):
        open_source(tmp_path, "train")


def test_torchvisions_cifar_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    flat = np.stack([pixels(i, 32).transpose(2, 0, 1).ravel() for i in range(2)])
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": flat, "labels": [3, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    train, test = open_source(tmp_path, "train"), open_source(folder, "test")
    assert (len(train), len(test), test.labels.tolist(), train.class_names[3]) == (10, 2, [3, 9], "d")
    assert np.array_equal(np.asarray(train.image(9)), pixels(1, 32))


def test_the_hubs_library_reads_the_same(tmp_path: Path) -> None:
    """The road of hub names and of folders too large to be read whole, on a folder of ours."""
    from esbnn_cls.data.known import HubSource

    write_parquet(tmp_path / "set" / "train-0.parquet", 6)
    check(HubSource(str(tmp_path / "set"), "train"), 6)
    with pytest.raises(UserError, match=r"hfds/.*nothere.*cannot be loaded") as caught:
        open_source("hfds/" + str(tmp_path / "nothere"), "train")
    assert "Traceback" not in str(caught.value)


def test_real_cifar10(esbnn_data: Path) -> None:
    exact, jpeg = open_source(esbnn_data / "cifar10_exact", "test"), open_source(esbnn_data / "cifar10", "test")
    assert (len(exact), len(jpeg)) == (1017, 10000) and exact.class_names[0] == "airplane"
    assert np.bincount(exact.labels).tolist() == [105, 93, 100, 104, 92, 87, 114, 102, 110, 110]
    assert np.array_equal(exact.labels, jpeg.labels[:1017])
    difference = np.asarray(exact.image(5), float) - np.asarray(jpeg.image(5), float)
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 23


def test_digits_have_a_fixed_split() -> None:
    train, test = open_source("digits", "train"), open_source("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.class_names == tuple("0123456789")
    assert np.asarray(train.image(0)).max() == 255
    assert np.bincount(test.labels).min() >= 25


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere", "no such dataset"),
        ("notes.txt", "no dataset"),
        (None, "no dataset is given"),
        ("empty", "no split 'train'"),
        ("bad.tar", "tar"),
    ],
)
def test_what_is_no_dataset_is_one_line(tmp_path: Path, spec: str | None, words: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "bad.tar").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words) as caught:
        open_source(tmp_path / spec if spec else None, "train")
    assert "\n" not in str(caught.value)


def test_truncated_parquet_names_the_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", 4)
    file = tmp_path / "train.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"train\.parquet: not a whole parquet file"):
        open_source(tmp_path, "train")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_a_broken_image_is_named_and_never_replaced(tmp_path: Path, storage: str, workers: int) -> None:
    write_parquet(tmp_path / "train.parquet", 6, broken=3)
    source = open_source(tmp_path, "train")
    with pytest.raises(UserError, match=r"row 3 \(3\.png\)") as caught:
        list(open_batches(source, HALF, storage=storage, workers=workers).evaluation(2))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_truncated_jpeg_is_broken(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 2, size=64)
    buffer = io.BytesIO()
    Image.fromarray(pixels(1, 64)).save(buffer, "jpeg")
    (tmp_path / "train" / "cat" / "9.jpg").write_bytes(buffer.getvalue()[:800])
    source = open_source(tmp_path, "train")
    with pytest.raises(UserError, match=r"cat/9\.jpg"):
        [source.image(index) for index in range(3)]


def test_images_of_another_size_are_an_error_unless_resized(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", 4)
    source = open_source(tmp_path, "train")
    wide = Preprocess((3, 16, 16), HALF.mean, HALF.std)
    with pytest.raises(UserError, match="is 8x8, the model wants 16x16"):
        open_batches(source, wide)
    with pytest.raises(UserError, match="is 8x8, wanted is 16x16"):
        list(open_batches(source, wide, augment=Augment(), storage="stream").training(Geometry(2), 0, 0))
    assert next(open_batches(source, wide, resize=True).evaluation(4))[0].shape == (4, 3, 16, 16)


def test_decoded_images_are_cached_and_noticed_when_files_change(tmp_path: Path, cache: Path) -> None:
    write_parquet(tmp_path / "train.parquet", 4)
    first = decoded(open_source(tmp_path, "train"), (8, 8), 3, resize=False).copy()
    assert np.array_equal(first[2], pixels(2).transpose(2, 0, 1))
    kept = list(cache.rglob("images.npy"))
    assert len(kept) == 1
    source = open_source(tmp_path, "train")
    source._open = None  # type: ignore[assignment,method-assign]  # a second decoding would fail
    assert np.array_equal(decoded(source, (8, 8), 3, resize=False), first)
    write_parquet(tmp_path / "train.parquet", 5)
    assert len(decoded(open_source(tmp_path, "train"), (8, 8), 3, resize=False)) == 5
    kept[0].write_bytes(b"harmed")
    write_parquet(tmp_path / "train.parquet", 4)
    assert np.array_equal(decoded(open_source(tmp_path, "train"), (8, 8), 3, resize=False), first)


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ESBNN_CACHE", str(tmp_path / "file"))
    write_parquet(tmp_path / "train.parquet", 4)
    assert len(decoded(open_source(tmp_path, "train"), (8, 8), 3, resize=False)) == 4
    assert "not cached" in caplog.text


def ramp(count: int = 64) -> MemoryBatches:
    images = torch.from_numpy(np.stack([pixels(i).transpose(2, 0, 1) for i in range(count)]))
    return MemoryBatches(images, torch.arange(count), HALF.mean, HALF.std, padding=2, flip=0.5)


def test_training_batches_are_crops_and_flips_of_their_images() -> None:
    batches = ramp()
    x, labels = next(batches.training(Geometry(64), seed=1, epoch=0))
    assert sorted(labels.tolist()) == list(range(64))
    flipped = 0
    for crop, label in zip(x, labels.tolist(), strict=True):
        padded = np.pad(pixels(label).transpose(2, 0, 1), ((0, 0), (2, 2), (2, 2)))
        found = ((crop * 0.5 + 0.5) * 255).round().to(torch.uint8).numpy()
        places = {
            turned
            for top in range(5)
            for left in range(5)
            for turned, view in enumerate((found, found[..., ::-1]))
            if np.array_equal(padded[:, top : top + 8, left : left + 8], view)
        }
        assert places
        flipped += places == {1}
    assert 15 <= flipped <= 50


def test_normalisation_is_torchvisions_to_the_last_bit() -> None:
    from torchvision import transforms

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    official = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    batches = MemoryBatches(torch.from_numpy(pixels(3).transpose(2, 0, 1))[None], torch.zeros(1), mean, std)
    assert torch.equal(next(batches.evaluation(1))[0][0], official(Image.fromarray(pixels(3))))


def joined(parts) -> tuple[torch.Tensor, torch.Tensor]:
    xs, labels = zip(*parts, strict=True)
    return torch.cat(xs), torch.cat(labels)


def test_the_same_pixels_for_any_accumulation_and_number_of_processes() -> None:
    whole = joined(ramp().training(Geometry(16), 3, 2))
    parts = [list(ramp().training(Geometry(16, 2, 2, rank), 3, 2)) for rank in range(2)]
    mixed = [parts[rank][i] for i in range(len(parts[0])) for rank in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(joined(mixed), whole, strict=True))


def test_an_epoch_can_begin_anywhere_and_differs_from_the_next() -> None:
    whole = joined(ramp().training(Geometry(16), 3, 0))
    late = joined(ramp().training(Geometry(16), 3, 0, start=2))
    assert torch.equal(late[0], whole[0][32:]) and not torch.equal(whole[0], joined(ramp().training(Geometry(16), 3, 1))[0])


def test_evaluation_shares_cover_everything_once() -> None:
    labels = [label for rank in range(3) for _, part in ramp(50).evaluation(7, rank, 3) for label in part.tolist()]
    assert labels == list(range(50))


HEAVY = Augment(crop="resized", color_jitter=(0.4, 0.4, 0.4), auto_augment="rand-m7-mstd0.5-inc1", erasing=0.5)


@pytest.mark.parametrize("augment", [HEAVY, Augment(padding=2, auto_augment="rand-m7", erasing=0.5)])
def test_streamed_samples_do_not_depend_on_workers_or_on_what_was_drawn_before(tmp_path: Path, augment: Augment) -> None:
    write_images(tmp_path / "train", 24, size=8)
    source = open_source(tmp_path, "train")

    def batches(workers: int, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        return joined(StreamBatches(source, HALF, augment, workers=workers).training(Geometry(8), 5, 1, start))

    state = torch.default_generator.get_state()
    whole = batches(0)
    assert torch.equal(state, torch.default_generator.get_state())
    torch.rand(3)
    assert torch.equal(batches(2)[0], whole[0])
    assert torch.equal(batches(0, start=1)[0], whole[0][8:])
    other = joined(StreamBatches(source, HALF, augment).training(Geometry(8), 5, 2))
    assert not torch.equal(other[0], whole[0])


def test_a_worker_whose_parent_is_gone_ends() -> None:
    """Also when the parent died before torch's own watch began."""
    from esbnn_cls.data.stream import _end_with

    child = os.fork()
    if child == 0:
        _end_with(parent=os.getppid() + 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_memory_is_chosen_for_small_images_and_cheap_augmentation(tmp_path: Path) -> None:
    write_images(tmp_path / "small" / "train", 2, size=8)
    write_images(tmp_path / "large" / "train", 2, size=80)
    small, large = (open_source(tmp_path / name, "train") for name in ("small", "large"))
    assert isinstance(open_batches(small, HALF, augment=Augment()), MemoryBatches)
    assert isinstance(open_batches(small, HALF, augment=HEAVY), StreamBatches)
    assert isinstance(open_batches(large, HALF, augment=HEAVY), StreamBatches)
    assert next(open_batches(large, HALF).evaluation(2))[0].shape == (2, 3, 8, 8)
    with pytest.raises(UserError, match=r"data\.storage=stream"):
        open_batches(small, HALF, augment=HEAVY, storage="memory")


def test_grey_images_have_one_channel_when_asked(tmp_path: Path) -> None:
    grey = Preprocess((1, 8, 8), (0.3,), (0.4,))
    for storage in ("memory", "stream"):
        x, _ = next(open_batches(open_source("digits", "test"), grey, storage=storage).evaluation(5))  # type: ignore[arg-type]
        assert x.shape == (5, 1, 8, 8)
