"""Images held in memory: the same pixels as one by one, the same chances, and batches of them."""

import pickle
import sys
from urllib.request import urlretrieve

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision.datasets import CIFAR10, SVHN
from torchvision.transforms import functional as transforms

from densenet_from_scratch import load_data
from densenet_from_scratch.data import HeldImages, labels_of, labels_without_reading, make_loader
from densenet_from_scratch.data.held import (
    Batch,
    collate,
    distort,
    draw_distortions,
    fits_in_memory,
    normalise,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def some_images(count: int = 12, size: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, size, size + 2), generator=generator, dtype=torch.uint8)


def held(count: int = 12, **options) -> HeldImages:
    return HeldImages(some_images(count), torch.arange(count), MEAN, STD, **options)


def test_the_same_distortions_give_the_same_pixels_as_torchvision():
    images = some_images(81 * 2)
    mirrored = torch.arange(len(images)) % 2 == 1
    shifts = torch.stack([torch.arange(len(images)) // 18, torch.arange(len(images)) // 2 % 9], 1)
    result = normalise(distort(images, mirrored, shifts), MEAN, STD)
    for number, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        if mirrored[number]:
            picture = transforms.hflip(picture)
        picture = transforms.crop(transforms.pad(picture, 4), *shifts[number].tolist(), 9, 11)
        expected = transforms.normalize(transforms.to_tensor(picture), MEAN, STD)
        assert torch.equal(result[number], expected)


def test_nothing_is_changed_where_it_lies():
    images = some_images()
    before = images.clone()
    distort(images, torch.ones(12, dtype=torch.bool), torch.zeros(12, 2, dtype=torch.int64))
    normalise(images, MEAN, STD)
    assert torch.equal(images, before)


def test_half_are_mirrored_and_all_shifts_are_as_likely():
    mirrored, shifts = draw_distortions(81_000)
    assert abs(mirrored.float().mean() - 0.5) < 4 * 0.5 / 81_000**0.5
    counts = (shifts[:, 0] * 9 + shifts[:, 1]).bincount(minlength=81)
    assert len(counts) == 81
    squares = ((counts - 1000.0) ** 2 / 1000).sum()  # chi-squared with 80 degrees of freedom
    assert 40 < squares < 140
    both = torch.stack([mirrored.float(), *shifts.T.float()]).corrcoef() - torch.eye(3)
    assert both.abs().max() < 0.02


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Two hundred images to train with and forty to test with, in torchvision's files."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("train_list", "test_list"):
        files = [[filename, None] for filename, _ in getattr(CIFAR10, name)]
        for filename, _ in files:
            entry = {"data": random.integers(0, 256, (40, 3072), dtype=np.uint8)}
            (folder / filename).write_bytes(pickle.dumps(entry | {"labels": [0, 1, 2, 3] * 10}))
        monkeypatch.setattr(CIFAR10, name, files)
    names = {"label_names": [str(number) for number in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})
    return tmp_path


def test_cifar_is_the_same_both_ways(cifar):
    fast, slow = (load_data("cifar10", cifar, in_memory=way) for way in (None, False))
    assert isinstance(fast.train, HeldImages) and isinstance(slow.train, CIFAR10)
    for part in ("train", "test"):
        [[images, labels]] = make_loader(getattr(fast, part), 200)
        [[others, other_labels]] = make_loader(getattr(slow, part), 200)
        assert torch.equal(images, others) and torch.equal(labels, other_labels)
        assert labels.dtype == other_labels.dtype


def test_distorted_images_are_distributed_alike_both_ways(cifar):
    """The mean over many epochs, at each pixel, and how much it varies from image to image."""
    moments = []
    for way in (True, False):
        dataset = load_data("cifar10", cifar, augment=True, in_memory=way).train
        images = torch.cat([x for _ in range(25) for x, _ in make_loader(dataset, 200)])
        moments.append((images.mean((0, 1)), images.std((0, 1)), len(images)))
    (mean, std, count), (other_mean, other_std, _) = moments
    error = (2 / (3 * count)) ** 0.5  # of a difference of means, for a standard deviation of 1
    assert ((mean - other_mean) / std).abs().max() < 8 * error
    assert (std / other_std - 1).abs().max() < 0.06
    assert mean[0, 0] < mean[16, 16], "at the border there is black"


def test_an_image_at_a_time():
    dataset = held()
    assert len(dataset) == 12 and len(list(dataset)) == 12
    image, label = dataset[np.int64(3)]
    assert torch.equal(image, normalise(some_images(), MEAN, STD)[3])
    assert (type(label), label, dataset[-1][1]) == (int, 3, 11)
    for wrong in (12, -13):
        with pytest.raises(IndexError, match=f"^index must be from 0 to 11, got {wrong}"):
            dataset[wrong]
    assert labels_of(dataset).tolist() == labels_without_reading(dataset).tolist() == [*range(12)]


@pytest.mark.parametrize("workers", [0, 2])
def test_any_loader_makes_the_same_batches(workers):
    dataset = held()
    ours = list(make_loader(dataset, 5, num_workers=workers))
    theirs = list(DataLoader(dataset, 5, num_workers=workers))
    one_by_one = list(DataLoader([dataset[index] for index in range(12)], 5))
    assert [len(labels) for _, labels in ours] == [5, 5, 2]
    for batches in zip(ours, theirs, one_by_one, strict=True):
        for images, labels in batches[1:]:
            assert torch.equal(images, batches[0][0]) and torch.equal(labels, batches[0][1])
            assert labels.dtype == torch.int64


def test_subsets_are_read_a_batch_at_a_time(monkeypatch):
    part = Subset(Subset(held(), [5, 4, 2, 9]), [3, 0])
    monkeypatch.setattr(HeldImages, "__getitem__", None)
    [[images, labels]] = make_loader(part)
    assert labels.tolist() == [9, 5] and images.shape == (2, 3, 9, 11)
    monkeypatch.undo()
    [[_, labels]] = make_loader(ConcatDataset([part, held(2)]))
    assert labels.tolist() == [9, 5, 0, 1]


def test_a_batch_reads_as_pairs():
    batch = Batch(torch.arange(6).view(3, 2), torch.tensor([7, 8, 9]))
    assert [(image.tolist(), int(label)) for image, label in batch] == [
        ([0, 1], 7),
        ([2, 3], 8),
        ([4, 5], 9),
    ]
    assert len(batch) == 3 and batch[1][1] == 8
    assert collate(batch)[1] is batch.labels
    assert collate([(torch.ones(2), 3)])[1].tolist() == [3]


def test_what_is_small_is_held_and_what_is_asked_for():
    shape = (1, 1024, 1024)
    assert fits_in_memory(None, 1023, shape) and not fits_in_memory(None, 1024, shape)
    assert fits_in_memory(True, 9999, shape) and not fits_in_memory(False, 1, shape)
    gpu = torch.device("cuda")
    assert fits_in_memory(True, 1024, shape, gpu)
    with pytest.raises(ValueError, match=r"^in_memory must be True to hold 1\.0 GiB .* on cuda"):
        fits_in_memory(None, 1024, shape, gpu)


def test_workers_have_no_part_in_images_on_a_gpu():
    """A device without memory stands for the GPU."""
    dataset = HeldImages(some_images().to("meta"), torch.arange(12), MEAN, STD, augment=True)
    [[images, labels]] = make_loader(Subset(dataset, [3, 4]))
    assert images.shape == (2, 3, 9, 11) and images.device.type == "meta"
    assert labels.tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"^num_workers must be 0 for images held on meta, got 2"):
        make_loader(Subset(dataset, [3]), num_workers=2)


def test_draws_come_from_the_cpu_whatever_the_default_device_is():
    dataset = held(augment=True)
    results = []
    for device in (None, "meta"):
        torch.manual_seed(0)
        torch.set_default_device(device)
        try:
            results.append(dataset.__getitems__(range(12)).images)
        finally:
            torch.set_default_device(None)
    assert torch.equal(*results)


# --- Workers -------------------------------------------------------------------------------------


class Drawn(Dataset):
    """Shows what a worker draws."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(()), index


def epochs(dataset: Dataset, seed: int, count: int = 2) -> list[torch.Tensor]:
    loader = make_loader(dataset, 4, seed=seed, num_workers=2)
    return [torch.cat([images for images, _ in loader]) for _ in range(count)]


def test_workers_draw_differently_in_each_and_in_each_epoch_and_again_with_the_seed():
    first, second = epochs(Drawn(), 3)
    assert len(torch.cat([first, second]).unique()) == 16
    for again, before in zip(epochs(Drawn(), 3), (first, second), strict=True):
        assert torch.equal(again, before)
    assert not torch.equal(epochs(Drawn(), 4, 1)[0], first)


def test_workers_distort_differently_in_each_and_in_each_epoch_and_again_with_the_seed():
    same = some_images(1).expand(8, -1, -1, -1)  # images that differ in how they are drawn only
    dataset = HeldImages(same, torch.arange(8), MEAN, STD, augment=True)
    first, second = epochs(dataset, 3)
    assert not torch.equal(first[:4], first[4:]), "each batch is another worker's"
    assert not torch.equal(first, second)
    for again, before in zip(epochs(dataset, 3), (first, second), strict=True):
        assert torch.equal(again, before)


# --- SVHN ----------------------------------------------------------------------------------------


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """Ten images to train with and five to test with, in SVHN's files; there 10 stands for 0."""
    site = tmp_path / "site"
    site.mkdir()
    parts = {}
    for part, count in (("train", 10), ("test", 5)):
        images = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        file = site / f"{part}_32x32.mat"
        savemat(file, {"X": images, "y": 10 - np.arange(count, dtype=np.uint8)[:, None]})
        parts[part] = [file.as_uri(), file.name, None]
    monkeypatch.setattr(SVHN, "split_list", parts)
    return site


@pytest.mark.parametrize("in_memory", [True, False])
def test_svhn(in_memory, svhn, tmp_path):
    (tmp_path / "data").mkdir()
    svhn.rename(tmp_path / "data" / "svhn")
    data = load_data("svhn", tmp_path / "data", in_memory=in_memory)
    assert data.class_names == tuple("0123456789") and data.image_shape == (3, 32, 32)
    expected = [0, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert labels_of(data.train).tolist() == [label for _, label in data.train] == expected
    assert labels_of(data.test).tolist() == expected[:5]
    raw = np.random.default_rng(10).integers(0, 256, (32, 32, 3, 10), dtype=np.uint8)
    image = transforms.to_tensor(raw[..., 3])
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    assert torch.equal(data.train[3][0], transforms.normalize(image, mean, std))


def test_a_missing_or_damaged_svhn(svhn, tmp_path):
    root = tmp_path / "data"
    with pytest.raises(FileNotFoundError, match="pass download=True to fetch it, or root="):
        load_data("svhn", root)
    (root / "svhn").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"^data set 'svhn' at .* is damaged"):
        load_data("svhn", root)


def test_svhn_is_downloaded_whole(svhn, tmp_path, monkeypatch):
    def fetch(url, filename):
        urlretrieve(url, filename)

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fetch)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    root = tmp_path / "data"
    data = load_data("svhn", root, download=True)
    assert (len(data.train), len(data.test)) == (10, 5)
    assert [path.name for path in root.iterdir()] == ["svhn"]
    assert len(list((root / "svhn").iterdir())) == 2


def test_svhn_needs_scipy(svhn, tmp_path, monkeypatch):
    (tmp_path / "svhn").mkdir()
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"^scipy is not installed: bring it with pip install"):
        load_data("svhn", tmp_path)
