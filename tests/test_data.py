"""The data sets: what is in them, that they are read right, and what happens when they cannot be.

CIFAR and Fashion-MNIST are tiny fakes here, written in torchvision's layout and packed in the
archives that it downloads; torchvision's own code reads and "downloads" them, from files.
"""

import gzip
import hashlib
import pickle
import shutil
import tarfile
from dataclasses import FrozenInstanceError
from pathlib import Path
from urllib.request import urlretrieve

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from densenet_from_scratch import load_data
from densenet_from_scratch.data import (
    DATASETS,
    labels_of,
    labels_without_reading,
    make_loader,
    stratified_split,
    stratified_subset,
)

# --- The digits ----------------------------------------------------------------------------------


def test_digits():
    data = load_data()
    assert (data.name, data.num_classes, data.image_shape) == ("digits", 10, (1, 8, 8))
    assert data.class_names == tuple("0123456789")
    assert (len(data.train), len(data.test)) == (1297, 500)
    image, label = data.train[0]
    assert image.shape == (1, 8, 8) and image.dtype == torch.float32
    assert label.dtype == torch.int64
    images = data.train.tensors[0]
    torch.testing.assert_close(images.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(images.std(), torch.tensor(1.0), atol=1e-6, rtol=0)


def test_digits_are_stratified_and_split_without_overlap():
    data = load_data()
    train, test = (labels_of(part).bincount() for part in (data.train, data.test))
    shares = test / (train + test)
    torch.testing.assert_close(shares, torch.full((10,), 500 / 1797), atol=0.005, rtol=0)
    pictures = torch.cat([data.train.tensors[0], data.test.tensors[0]]).flatten(1)
    assert len(pictures.unique(dim=0)) == 1797


def test_digits_are_the_same_every_time():
    first, second = load_data(), load_data()
    for name in ("train", "test"):
        pairs = zip(getattr(first, name).tensors, getattr(second, name).tensors, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_digits_are_read_whatever_the_default_device_is():
    expected = load_data("digits").test.tensors
    torch.set_default_device("meta")
    try:
        images, labels = load_data("digits").test.tensors
    finally:
        torch.set_default_device(None)
    assert torch.equal(images, expected[0]) and torch.equal(labels, expected[1])


def test_the_digits_are_split_once_and_for_all():
    """Numbers that the chapters print depend on which images are which."""
    data = load_data()
    assert labels_of(data.train)[:12].tolist() == [2, 1, 2, 5, 1, 5, 9, 3, 0, 5, 9, 3]
    assert labels_of(data.test)[:12].tolist() == [4, 8, 8, 3, 9, 0, 6, 3, 9, 8, 4, 5]


def test_what_was_loaded_cannot_be_renamed():
    with pytest.raises(FrozenInstanceError):
        load_data().name = "other"


# --- CIFAR and Fashion-MNIST ---------------------------------------------------------------------

SOURCES = {"fashion-mnist": FashionMNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}
FOLDERS = {
    "fashion-mnist": "FashionMNIST",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
}
MEANS_AND_STDS = {  # of the real training images, in [0, 1]
    "fashion-mnist": ([0.2860], [0.3530]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
}
torchvision_data = pytest.mark.parametrize("name", SOURCES)


def fake_images(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, C, H, W) of a data set's size and labels; 20 to train with and 10 to test."""
    random = np.random.default_rng([len(name), len(part)])
    shape = (1, 28, 28) if name == "fashion-mnist" else (3, 32, 32)
    count = 20 if part == "train" else 10
    images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.arange(count) % 10


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(source: type, folder: Path, name: str, monkeypatch) -> None:
    for part, files in (("train", source.train_list), ("test", source.test_list)):
        images, labels = fake_images(name, part)
        key = "labels" if name == "cifar10" else "fine_labels"
        for (filename, _), rows in zip(
            files, np.split(np.arange(len(labels)), len(files)), strict=True
        ):
            entry = {"data": images[rows].reshape(len(rows), -1), key: list(labels[rows])}
            (folder / filename).write_bytes(pickle.dumps(entry))
        sums = [[filename, md5(folder / filename)] for filename, _ in files]
        monkeypatch.setattr(source, f"{part}_list", sums)
    names = [f"class {n}" for n in range(10 if name == "cifar10" else 100)]
    meta = folder / source.meta["filename"]
    meta.write_bytes(pickle.dumps({source.meta["key"]: names}))
    monkeypatch.setattr(source, "meta", source.meta | {"md5": md5(meta)})


def write_fashion_mnist(folder: Path) -> None:
    (folder / "raw").mkdir()
    for part, stem in (("train", "train"), ("test", "t10k")):
        images, labels = fake_images("fashion-mnist", part)
        for kind, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            path = folder / "raw" / f"{stem}-{kind}-ubyte"
            path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Write a fake data set below a root, and return the root."""

    def write(name: str) -> Path:
        source, root = SOURCES[name], tmp_path / "data"
        folder = root / FOLDERS[name]
        folder.mkdir(parents=True)
        if name == "fashion-mnist":
            write_fashion_mnist(folder)
        else:
            write_cifar(source, folder, name, monkeypatch)
        return root

    return write


@pytest.fixture
def archive(fake, tmp_path, monkeypatch):
    """Pack a fake data set where torchvision will "download" it from; return that folder."""

    def pack(name: str) -> Path:
        root, source, site = fake(name), SOURCES[name], tmp_path / "site"
        site.mkdir()
        if name == "fashion-mnist":
            files = root / "FashionMNIST" / "raw"
            for filename, _ in source.resources:
                (site / filename).write_bytes(
                    gzip.compress((files / filename.removesuffix(".gz")).read_bytes())
                )
            sums = [(filename, md5(site / filename)) for filename, _ in source.resources]
            monkeypatch.setattr(source, "resources", sums)
            monkeypatch.setattr(source, "mirrors", [f"{site.as_uri()}/"])
        else:
            path = site / source.filename
            with tarfile.open(path, "w:gz") as tar:
                tar.add(root / FOLDERS[name], FOLDERS[name])
            monkeypatch.setattr(source, "tgz_md5", md5(path))
            monkeypatch.setattr(source, "url", path.as_uri())
        # Torchvision's progress bar wants a length that the answer to a file:// address lacks.
        monkeypatch.setattr(
            torchvision.datasets.utils, "_urlretrieve", lambda url, to: urlretrieve(url, to)
        )
        shutil.rmtree(root)
        return site

    return pack


def normalised(name: str, images: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in MEANS_AND_STDS[name])
    return (torch.from_numpy(images) / 255 - mean) / std


@torchvision_data
def test_images_and_labels_are_read_from_torchvisions_layout(name, fake):
    data = load_data(name, fake(name))
    assert data.num_classes == (100 if name == "cifar100" else 10)
    for part in ("train", "test"):
        images, labels = fake_images(name, part)
        dataset = getattr(data, part)
        assert data.image_shape == images.shape[1:]
        torch.testing.assert_close(
            torch.stack([image for image, _ in dataset]), normalised(name, images)
        )
        assert [label for _, label in dataset] == labels.tolist() == labels_of(dataset).tolist()


@torchvision_data
def test_augmentation_mirrors_and_shifts_training_images_only(name, fake):
    root = fake(name)
    data = load_data(name, root, augment=True)
    plain = load_data(name, root)
    assert torch.equal(data.test[0][0], plain.test[0][0])

    torch.manual_seed(0)
    seen = [data.train[0][0] for _ in range(12)]
    torch.manual_seed(0)
    assert torch.equal(seen[0], data.train[0][0])
    seen += [data.train[0][0] for _ in range(60)]
    assert len(torch.stack(seen).flatten(1).unique(dim=0)) > 30
    original = torch.from_numpy(fake_images(name, "train")[0][0])
    padded = F.pad(original, (4, 4, 4, 4))
    _, height, width = original.shape
    shifts = set()
    for image in seen:
        candidates = [
            padded.flip(-1)[:, i : i + height, j : j + width]
            if mirrored
            else padded[:, i : i + height, j : j + width]
            for i in range(9)
            for j in range(9)
            for mirrored in (False, True)
        ]
        expected = normalised(name, torch.stack(candidates).numpy())
        distance, place = (expected - image).abs().amax((1, 2, 3)).min(dim=0)
        assert distance < 1e-5
        shifts |= {("down", int(place) // 18), ("right", int(place) // 2 % 9)}
    assert {(way, shift) for way in ("down", "right") for shift in (0, 8)} <= shifts


@torchvision_data
def test_a_missing_data_set_says_where_it_should_be(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_data(name, tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / FOLDERS[name]) in str(caught.value)
    for part in (repr(name), "download=True", "root="):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_folder_is_data_unless_given_and_may_be_in_the_home_folder(fake, tmp_path, monkeypatch):
    assert fake("fashion-mnist") == tmp_path / "data"
    monkeypatch.chdir(tmp_path)
    assert len(load_data("fashion-mnist").train) == 20
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_data("fashion-mnist", "~/data").train) == 20


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("root", ["file", "file/below", "/dev/null"])
def test_a_root_that_is_a_file_is_refused(root, download, tmp_path):
    (tmp_path / "file").write_text("mine")
    path = str(tmp_path / root)
    with pytest.raises(ValueError, match=f"^root must be a folder, got '{path}', which is or is"):
        load_data("cifar10", path, download=download)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"root": ""}, "root must be a path, got ''"),
        ({"root": None}, "root must be a path, got None"),
        ({"root": b"data"}, "root must be a path, got b'data'"),
        ({"augment": "no"}, "augment must be one of False, True, got 'no'"),
        ({"download": "no"}, "download must be one of False, True, got 'no'"),
    ],
)
def test_an_argument_of_another_kind(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        load_data("cifar10", **options)


@torchvision_data
@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_a_damaged_data_set_says_what_to_do(name, damage, fake):
    root = fake(name)
    victim = next(p for p in sorted(root.rglob("*")) if p.is_file() and "t" in p.name)
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-100])
    for download in (False, True):
        with pytest.raises(RuntimeError) as caught:
            load_data(name, root, download=download)
        for part in (repr(name), str(root / FOLDERS[name]), "damaged", "delete"):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)


@torchvision_data
def test_a_download_arrives_whole(name, archive, tmp_path):
    archive(name)
    root = tmp_path / "new" / "data"
    data = load_data(name, root, download=True)
    assert len(data.train) == 20 and len(data.test) == 10
    assert [path.name for path in root.iterdir()] == [FOLDERS[name]]
    shutil.rmtree(tmp_path / "site")  # a second time needs no download
    load_data(name, root, download=True)


@torchvision_data
def test_a_download_that_fails_changes_nothing(name, archive, tmp_path):
    site = archive(name)
    max(site.iterdir(), key=lambda path: path.name).unlink()  # the last of them to be fetched
    root = tmp_path / "data"
    root.mkdir()
    (root / "mine.txt").write_text("keep")
    (tmp_path / "empty").mkdir()
    for place in (root, tmp_path / "new" / "deep", tmp_path / "empty"):
        with pytest.raises(ConnectionError) as caught:
            load_data(name, place, download=True)
        for part in (repr(name), "could not be downloaded", str(place), "root=", FOLDERS[name]):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
    assert [path.name for path in root.rglob("*")] == ["mine.txt"]
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "empty").exists()


def test_a_download_is_unpacked_beside_its_place(archive, tmp_path, monkeypatch):
    """So that moving it there is one step of the file system, which happens or does not."""
    archive("cifar10")
    moved, move = [], shutil.move
    monkeypatch.setattr(shutil, "move", lambda a, b: (moved.append(Path(a)), move(a, b)))
    load_data("cifar10", tmp_path / "data", download=True)
    [source] = moved
    assert source.parent.parent == tmp_path / "data" and source.parent.name.startswith(".")


def test_every_data_set_has_been_tested():
    assert set(DATASETS) == {"digits", "svhn", "folder", *SOURCES}
    with pytest.raises(ValueError, match=r"^name must be one of 'digits', .*, got 'CIFAR10'"):
        load_data("CIFAR10")


# --- Splits and loaders --------------------------------------------------------------------------


def numbered(labels: list[int]) -> TensorDataset:
    """A data set whose images are their own numbers."""
    return TensorDataset(torch.arange(len(labels)), torch.tensor(labels))


@given(
    counts=st.lists(st.integers(4, 12), min_size=2, max_size=5),
    fraction=st.floats(0.3, 0.7),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_holds_every_image_once_and_keeps_the_proportions(counts, fraction, seed):
    dataset = numbered([label for label, count in enumerate(counts) for _ in range(count)])
    first, second = stratified_split(dataset, fraction, seed)
    assert sorted(first.indices + second.indices) == list(range(len(dataset)))
    assert len(first) == round(fraction * len(dataset))
    for label, count in enumerate(counts):
        assert abs((labels_of(first) == label).sum().item() - fraction * count) <= 1.5
    assert stratified_split(dataset, fraction, seed)[0].indices == first.indices
    assert stratified_subset(dataset, fraction, seed).indices == first.indices


def test_other_seeds_split_otherwise():
    dataset = numbered([0, 1] * 50)
    splits = {tuple(stratified_split(dataset, 0.5, seed)[0].indices) for seed in range(5)}
    assert len(splits) == 5


def test_the_whole_is_no_subset():
    dataset = numbered([0, 1] * 5)
    assert stratified_subset(dataset, 1) is dataset


def test_labels_of_a_subset_of_a_subset():
    dataset = numbered([3, 1, 4, 1, 5, 9])
    assert labels_of(Subset(Subset(dataset, [5, 4, 2]), [2, 0])).tolist() == [4, 9]
    both = ConcatDataset([dataset, Subset(dataset, [0])])
    assert labels_of(both).tolist() == [3, 1, 4, 1, 5, 9, 3]


class Listed(Dataset):
    """A data set that has its labels apart, as torchvision's have, and may change them."""

    def __init__(self, **attributes) -> None:
        vars(self).update(attributes)


@pytest.mark.parametrize(
    "dataset", [Listed(), [(0, 1)], TensorDataset(torch.zeros(3))], ids=["none", "list", "images"]
)
def test_labels_that_only_reading_would_tell(dataset):
    with pytest.raises(ValueError, match=r"^dataset must be a TensorDataset of images and labels"):
        labels_of(dataset)
    assert labels_without_reading(dataset) is None
    assert labels_without_reading(Subset(dataset, [0])) is None


def test_labels_that_come_with_the_images():
    plain = Listed(targets=[3, 1, 4], target_transform=None)
    assert labels_without_reading(plain).tolist() == [3, 1, 4]
    assert labels_without_reading(Subset(plain, [2, 0])).tolist() == [4, 3]
    assert labels_without_reading(numbered([2, 7])).tolist() == [2, 7]
    assert labels_without_reading(Listed(target_transform=None)) is None
    for changing in (Listed(targets=[3], target_transform=abs), Listed(targets=[3])):
        assert labels_of(changing).tolist() == [3]
        assert labels_without_reading(changing) is None


@pytest.mark.parametrize("split", [stratified_split, stratified_subset])
def test_the_limits_of_a_split(split):
    dataset = numbered([0, 1, 2] * 4)
    for fraction in (3 / 12, 9 / 12):
        assert len(stratified_split(dataset, fraction)[0]) == round(12 * fraction)
    for fraction in (2 / 12, 10 / 12):
        with pytest.raises(ValueError, match=r"^fraction must leave at least 3 images, one a"):
            split(dataset, fraction)
    with pytest.raises(ValueError, match=r"^dataset must hold at least two .*, got one of class 7"):
        split(numbered([0, 0, 0, 7]), 0.5)
    assert len(stratified_split(dataset, 0.5, 2**32 - 1)[0]) == 6
    with pytest.raises(ValueError, match=r"^seed must be an integer below 2\*\*32, got 4294967296"):
        split(dataset, 0.5, 2**32)


def test_the_seed_is_0_unless_given():
    dataset = numbered([0, 1] * 20)
    given = stratified_split(dataset, 0.5, 0)[0].indices
    assert stratified_split(dataset, 0.5)[0].indices == given
    assert stratified_subset(dataset, 0.5).indices == given
    orders = [
        [images.tolist() for images, _ in make_loader(dataset, 8, shuffle=True, **options)]
        for options in ({}, {"seed": 0}, {"seed": 1})
    ]
    assert orders[0] == orders[1] != orders[2]


def orders(seed: int, epochs: int = 2, **options) -> list[list[int]]:
    loader = make_loader(numbered([0] * 50), batch_size=8, seed=seed, **options)
    return [[i for images, _ in loader for i in images.tolist()] for _ in range(epochs)]


def test_the_order_of_a_loader():
    assert orders(0) == [list(range(50))] * 2
    first, second = orders(0, shuffle=True)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second, "each epoch has an order of its own"
    assert orders(0, shuffle=True) == [first, second]
    assert orders(1, shuffle=True)[0] != first
    assert orders(0, shuffle=True, num_workers=2) == [first, second]


def test_a_loader_is_plain_unless_asked():
    loader = make_loader(numbered([0] * 70))
    assert (loader.batch_size, loader.num_workers) == (64, 0)
    assert [images.tolist() for images, _ in loader] == [list(range(64)), list(range(64, 70))]


def test_what_a_loader_refuses():
    with pytest.raises(ValueError, match=r"^seed must be an integer below 2\*\*63, got"):
        make_loader(numbered([0]), seed=2**63)
    with pytest.raises(ValueError, match=r"^seed must be an integer of at least 0, got -1"):
        make_loader(numbered([0]), seed=-1)
    with pytest.raises(ValueError, match=r"^dataset must hold at least one image, got 0"):
        make_loader(numbered([]))
    assert make_loader(numbered([0]), seed=2**63 - 1).generator.initial_seed() == 2**63 - 1
    for wrong in (iter([(0, 1)]), torch.zeros(3, 1), Listed(), load_data()):
        with pytest.raises(ValueError, match=r"^dataset must be a data set, with a length and"):
            make_loader(wrong)


def test_batches_hold_images_and_labels():
    data = load_data()
    sizes = []
    for images, labels in make_loader(data.test, batch_size=128):
        assert images.shape == (len(labels), 1, 8, 8)
        sizes.append(len(labels))
    assert sizes == [128, 128, 128, 116]
