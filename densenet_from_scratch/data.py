"""Real images to learn from (chapter 0).

The default is scikit-learn's ``digits``: 1,797 scanned handwritten digits of 8×8 pixels, which
come inside that package, so nothing is downloaded. CIFAR-10, CIFAR-100 and Fashion-MNIST go
through torchvision and are read from disk; they are downloaded only when you ask.

scikit-learn and torchvision are imported where they are used: together they take twice as long to
import as PyTorch does, and much of the course needs neither.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from densenet_from_scratch.arguments import check_choice, check_count, check_fraction


@dataclass(frozen=True)
class Data:
    """A data set in two parts, and what a network must know about it.

    Attributes:
        name: the name :func:`load_data` was called with.
        train: pairs of an image, float (C, H, W), normalised with the mean and standard deviation
            of the training images, and a class number.
        test: pairs of the same kind that training never sees.
        class_names: a name for each class number.
        image_shape: (C, H, W) of every image.
    """

    name: str
    train: Dataset
    test: Dataset
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


@dataclass(frozen=True)
class _TorchvisionSource:
    class_name: str  # in torchvision.datasets
    folder: str  # where torchvision puts it under the root
    mean: tuple[float, ...]  # per channel, of the training images scaled to [0, 1]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]

    @property
    def make(self) -> Callable[..., Any]:
        from torchvision import datasets

        return getattr(datasets, self.class_name)


_CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100_STATISTICS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_TORCHVISION = {
    "fashion-mnist": _TorchvisionSource(
        "FashionMNIST", "FashionMNIST", (0.2860,), (0.3530,), (1, 28, 28)
    ),
    "cifar10": _TorchvisionSource(
        "CIFAR10", "cifar-10-batches-py", *_CIFAR10_STATISTICS, (3, 32, 32)
    ),
    "cifar100": _TorchvisionSource(
        "CIFAR100", "cifar-100-python", *_CIFAR100_STATISTICS, (3, 32, 32)
    ),
}
DATASETS = ("digits", *_TORCHVISION)


def load_data(
    name: str = "digits",
    root: str | Path = "data",
    *,
    download: bool = False,
    augment: bool = False,
) -> Data:
    """Load a data set by name.

    Args:
        name: one of ``DATASETS``.
        root: the folder that holds torchvision's data sets, in torchvision's own layout; ``~`` is
            your home. The digits need none.
        download: fetch a missing data set into ``root``. A download that fails leaves ``root`` as
            it was.
        augment: mirror and shift the training images at random, the "+" of the DenseNet paper's
            "C10+" (section 4.1). Not for the digits, since a mirrored digit is no digit.

    Returns:
        The data, normalised. The digits are split once and for all into 1,297 training and 500
        test images with every class in proportion.

    Raises:
        ValueError: ``name`` is unknown, ``root`` is a file, or ``augment`` was asked of the digits.
        FileNotFoundError: the data set is not under ``root`` and ``download`` is false.
        ConnectionError: it could not be downloaded.
        RuntimeError: its files are there but damaged.
        ImportError: what reads it, scikit-learn or torchvision, is not installed.
    """
    check_choice("name", name, DATASETS)
    check_choice("augment", augment, (False, True))
    check_choice("download", download, (False, True))
    if name == "digits":
        if augment:
            raise ValueError("augment must be False for 'digits' (no mirrored digits), got True")
        return _load_digits()
    folder = as_path("root", root)
    if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        raise ValueError(f"root must be a folder, got {str(folder)!r}, which is or is in a file")
    return _load_torchvision(name, folder, download, augment)


def need(module: str, package: str) -> None:
    """Raise ``ImportError`` in one line where a package of the extra ``data`` is missing."""
    try:
        import_module(module)
    except ImportError:
        raise ImportError(
            f"{package} is not installed: bring it with pip install {package}"
        ) from None


def as_path(name: str, value: Any) -> Path:
    """Return a path, with ``~`` as your home; raise ``ValueError`` for what is none."""
    try:
        if os.fspath(value) == "":
            raise TypeError
        return Path(value).expanduser()
    except (TypeError, RuntimeError):
        raise ValueError(f"{name} must be a path, got {value!r}") from None


def _load_digits() -> Data:
    need("sklearn", "scikit-learn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16  # (1797, 1, 8, 8)
    labels = torch.from_numpy(bunch.target)
    train, test = train_test_split(
        range(len(labels)), test_size=500, stratify=labels, random_state=0
    )
    images = (images - images[train].mean()) / images[train].std()
    names = tuple(str(digit) for digit in bunch.target_names)
    return Data(
        "digits",
        TensorDataset(images[train], labels[train]),
        TensorDataset(images[test], labels[test]),
        names,
        (1, 8, 8),
    )


def _load_torchvision(name: str, root: Path, download: bool, augment: bool) -> Data:
    need("torchvision", "torchvision")
    from torchvision import transforms

    source = _TORCHVISION[name]
    if not (root / source.folder).exists():
        if not download:
            raise FileNotFoundError(
                f"data set {name!r} is not at {root / source.folder}; pass download=True to fetch "
                f"it, or root= the folder that holds {source.folder}"
            )
        _download(name, source, root)
    normalise = [transforms.ToTensor(), transforms.Normalize(source.mean, source.std)]
    # Section 4.1 of the paper: mirror, and pad by 4 pixels then crop back.
    distort = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomCrop(source.image_shape[1:], padding=4),
    ]
    try:
        train = source.make(
            root,
            train=True,
            transform=transforms.Compose((distort if augment else []) + normalise),
        )
        test = source.make(root, train=False, transform=transforms.Compose(normalise))
    except Exception as error:
        # Torchvision says "not found or corrupted"; the folder is there, so it is the latter.
        raise RuntimeError(
            f"data set {name!r} at {root / source.folder} is damaged ({error}); delete that folder "
            "and load again with download=True"
        ) from error
    return Data(name, train, test, tuple(train.classes), source.image_shape)


def _download(name: str, source: _TorchvisionSource, root: Path) -> None:
    """Fetch into a folder beside the destination, then move: all of it arrives, or nothing."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch:
            source.make(scratch, train=True, download=True)
            shutil.move(str(Path(scratch) / source.folder), root / source.folder)
    except (OSError, RuntimeError) as error:
        why = " ".join(str(error).split())  # in one line
        raise ConnectionError(
            f"data set {name!r} could not be downloaded to {root} ({why}); try again later, or "
            f"pass root= a folder that holds {source.folder}"
        ) from error
    finally:
        for folder in missing:  # those that are empty, after a failure
            with suppress(OSError):
                folder.rmdir()


def labels_of(dataset: Dataset) -> Tensor:
    """Return the class number of every image, shape (N,), without decoding the images.

    Raises:
        ValueError: the data set is none that holds its labels apart from the images.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([labels_of(part) for part in dataset.datasets])
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        return dataset.tensors[1]
    if hasattr(dataset, "targets"):  # torchvision's own name
        return torch.as_tensor(dataset.targets)
    raise ValueError(
        "dataset must be a TensorDataset of images and labels, or have its labels as targets, got "
        f"{type(dataset).__name__}"
    )


def labels_without_reading(dataset: Dataset) -> Tensor | None:
    """Return :func:`labels_of` if these are surely what comes with the images, otherwise None."""
    if isinstance(dataset, Subset):
        labels = labels_without_reading(dataset.dataset)
        return labels if labels is None else labels[torch.as_tensor(dataset.indices)]
    # With a target_transform of torchvision's, targets are not what the data set gives.
    if isinstance(dataset, TensorDataset) or getattr(dataset, "target_transform", 0) is None:
        with suppress(ValueError):
            return labels_of(dataset)
    return None


def stratified_split(dataset: Dataset, fraction: float, seed: int = 0) -> tuple[Subset, Subset]:
    """Split at random into ``fraction`` of the images and the rest, every class in proportion.

    Args:
        dataset: what to split.
        fraction: share of the first part, between 0 and 1 and neither.
        seed: the same seed gives the same split.

    Returns:
        Two subsets that together hold every image once.

    Raises:
        ValueError: ``fraction`` or ``seed`` is out of range, a class has a single image, a part
            would have fewer images than classes, or the labels cannot be read apart.
        ImportError: scikit-learn is not installed.
    """
    need("sklearn", "scikit-learn")
    from sklearn.model_selection import train_test_split

    check_fraction("fraction", fraction, one=False)
    check_seed(seed, bits=32)
    labels = labels_of(dataset)
    names, counts = labels.unique(return_counts=True)
    if 1 in counts:
        raise ValueError(
            "dataset must hold at least two images of every class to split, got one of class "
            f"{names[counts == 1][0].item()}"
        )
    size, classes = round(len(labels) * fraction), len(names)
    if not classes <= size <= len(labels) - classes:
        raise ValueError(
            f"fraction must leave at least {classes} images, one a class, in each part of "
            f"{len(labels)}, got {fraction!r}"
        )
    first, second = train_test_split(
        list(range(len(labels))), train_size=size, stratify=labels, random_state=seed
    )
    return Subset(dataset, first), Subset(dataset, second)


def stratified_subset(dataset: Dataset, fraction: float, seed: int = 0) -> Dataset:
    """Return a random ``fraction`` of the images, every class in proportion; 1 returns them all.

    Raises:
        ValueError, ImportError: as :func:`stratified_split`.
    """
    if check_fraction("fraction", fraction) == 1:
        return dataset
    return stratified_split(dataset, fraction, seed)[0]


def make_loader(
    dataset: Dataset,
    batch_size: int = 64,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Return batches of images (N, C, H, W) and class numbers (N,), in an order fixed by ``seed``.

    Args:
        dataset: what to read.
        batch_size: images in a batch, N; the last batch may be smaller.
        shuffle: a new order each epoch, as training wants.
        seed: seeds the order, and the workers' random augmentation.
        num_workers: processes that prepare images; 0 prepares them in this one.

    Raises:
        ValueError: ``dataset`` is empty or no data set, ``batch_size`` is not positive,
            ``num_workers`` is negative, ``seed`` out of range or ``shuffle`` no truth value.
    """
    check_dataset("dataset", dataset)
    return DataLoader(
        dataset,
        check_count("batch_size", batch_size),
        shuffle=check_choice("shuffle", shuffle, (False, True)),
        num_workers=check_count("num_workers", num_workers, minimum=0),
        generator=torch.Generator().manual_seed(check_seed(seed)),
    )


def check_dataset(name: str, dataset: Any) -> int:
    """Return how many images ``dataset`` holds; raise ``ValueError`` if none, or no data set."""
    if isinstance(dataset, Tensor) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise ValueError(
            f"{name} must be a data set, with a length and pairs of image and label by number, got "
            f"{type(dataset).__name__}"
        )
    if len(dataset) == 0:
        raise ValueError(f"{name} must hold at least one image, got 0")
    return len(dataset)


def check_seed(seed: Any, bits: int = 63) -> int:
    """Return ``seed`` if it is an integer of at least 0 and below 2^bits; else ``ValueError``."""
    if check_count("seed", seed, minimum=0) >= 2**bits:
        raise ValueError(f"seed must be an integer below 2**{bits}, got {seed!r}")
    return int(seed)
