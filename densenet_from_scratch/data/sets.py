"""Data sets, whatever they hold: their labels, parts in proportion, and batches."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from densenet_from_scratch.arguments import check_choice, check_count, check_fraction
from densenet_from_scratch.data.basics import need
from densenet_from_scratch.data.held import HeldImages, collate


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
        return dataset.tensors[1].cpu()
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


def held_images(dataset: Dataset) -> HeldImages | None:
    """Return the images in memory that a data set, or the whole of a subset, reads; else None."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset if isinstance(dataset, HeldImages) else None


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
        num_workers: processes that prepare images; 0 prepares them in this one, which is fastest
            for images held in memory. Each worker draws otherwise, and in each epoch.

    Raises:
        ValueError: ``dataset`` is empty or no data set, ``batch_size`` is not positive,
            ``num_workers`` is negative, or above 0 for images held on a GPU, ``seed`` out of range
            or ``shuffle`` no truth value.
    """
    check_dataset("dataset", dataset)
    num_workers = check_count("num_workers", num_workers, minimum=0)
    held = held_images(dataset)
    if num_workers and held is not None and held.images.device.type != "cpu":
        raise ValueError(
            f"num_workers must be 0 for images held on {held.images.device}, got {num_workers}"
        )
    return DataLoader(
        dataset,
        check_count("batch_size", batch_size),
        shuffle=check_choice("shuffle", shuffle, (False, True)),
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(check_seed(seed)),
        collate_fn=collate,
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
