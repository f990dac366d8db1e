"""The data sets that torchvision knows and can download: CIFAR, Fashion-MNIST and SVHN."""

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from densenet_from_scratch.data.basics import Data, need
from densenet_from_scratch.data.held import PADDING, HeldImages, fits_in_memory


@dataclass(frozen=True)
class _Source:
    class_name: str  # in torchvision.datasets
    folder: str  # where its files are under the root
    mean: tuple[float, ...]  # per channel, of the training images scaled to [0, 1]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]

    def make(self, root: str | Path, train: bool, **options: Any) -> Any:
        """Return torchvision's data set of one part."""
        from torchvision import datasets

        if self.class_name != "SVHN":
            return getattr(datasets, self.class_name)(root, train=train, **options)
        # SVHN names its parts, puts its files into no folder, and has its labels elsewhere.
        need("scipy", "scipy")
        part = "train" if train else "test"
        dataset = datasets.SVHN(str(Path(root) / self.folder), split=part, **options)
        dataset.targets, dataset.classes = dataset.labels, list("0123456789")
        return dataset


_CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100_STATISTICS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_SVHN_STATISTICS = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
_SOURCES = {
    "fashion-mnist": _Source("FashionMNIST", "FashionMNIST", (0.2860,), (0.3530,), (1, 28, 28)),
    "cifar10": _Source("CIFAR10", "cifar-10-batches-py", *_CIFAR10_STATISTICS, (3, 32, 32)),
    "cifar100": _Source("CIFAR100", "cifar-100-python", *_CIFAR100_STATISTICS, (3, 32, 32)),
    "svhn": _Source("SVHN", "svhn", *_SVHN_STATISTICS, (3, 32, 32)),
}
DOWNLOADS = tuple(_SOURCES)


def load_downloaded(
    name: str,
    root: Path,
    *,
    download: bool,
    augment: bool,
    in_memory: bool | None,
    device: torch.device,
) -> Data:
    """Load a data set of torchvision's; the arguments are those of ``load_data``.

    Raises:
        FileNotFoundError, ConnectionError, RuntimeError, ImportError: as ``load_data``.
    """
    need("torchvision", "torchvision")
    source = _SOURCES[name]
    if not (root / source.folder).exists():
        if not download:
            raise FileNotFoundError(
                f"data set {name!r} is not at {root / source.folder}; pass download=True to fetch "
                f"it, or root= the folder that holds {source.folder}"
            )
        _download(name, source, root)
    transforms = [_transform(source, augment), _transform(source, False)]
    try:
        train, test = (
            source.make(root, part, transform=transform)
            for part, transform in zip((True, False), transforms, strict=True)
        )
    except ImportError:
        raise
    except Exception as error:
        # Torchvision says "not found or corrupted"; the folder is there, so it is the latter.
        raise RuntimeError(
            f"data set {name!r} at {root / source.folder} is damaged ({error}); delete that folder "
            "and load again with download=True"
        ) from error
    names = tuple(train.classes)
    if fits_in_memory(in_memory, len(train) + len(test), source.image_shape, device):
        train, test = _hold(train, source, augment, device), _hold(test, source, False, device)
    return Data(name, train, test, names, source.image_shape)


def _transform(source: _Source, augment: bool) -> Any:
    from torchvision import transforms

    # Section 4.1 of the paper: mirror, and pad by 4 pixels then crop back.
    distort = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomCrop(source.image_shape[1:], padding=PADDING),
    ]
    normalise = [transforms.ToTensor(), transforms.Normalize(source.mean, source.std)]
    return transforms.Compose((distort if augment else []) + normalise)


def _hold(dataset: Any, source: _Source, augment: bool, device: torch.device) -> Dataset:
    images: Tensor = torch.as_tensor(dataset.data, device=device)
    if images.dim() == 3:  # (N, H, W)
        images = images.unsqueeze(1)
    elif images.shape[1:] != source.image_shape:  # (N, H, W, C)
        images = images.permute(0, 3, 1, 2)
    images = images.contiguous()
    return HeldImages(images, dataset.targets, source.mean, source.std, augment=augment)


def _download(name: str, source: _Source, root: Path) -> None:
    """Fetch into a folder beside the destination, then move: all of it arrives, or nothing."""
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch:
            for train in (True, False):  # the second has nothing to fetch, but for SVHN
                source.make(scratch, train, download=True)
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
