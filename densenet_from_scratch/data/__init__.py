"""Real images to learn from (chapter 0).

The default is scikit-learn's ``digits``: 1,797 scanned handwritten digits of 8×8 pixels, which
come inside that package, so nothing is downloaded. CIFAR-10, CIFAR-100, Fashion-MNIST and SVHN go
through torchvision and are read from disk; they are downloaded only when you ask. ``folder`` is
ImageNet, and whatever you have yourself: folders of image files.

scikit-learn and torchvision are imported where they are used: together they take twice as long to
import as PyTorch does, and much of the course needs neither.
"""

from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from densenet_from_scratch.arguments import check_choice, check_count, check_device
from densenet_from_scratch.data.basics import Data, as_path, need
from densenet_from_scratch.data.downloads import DOWNLOADS, load_downloaded
from densenet_from_scratch.data.folder import load_folder
from densenet_from_scratch.data.held import HeldImages
from densenet_from_scratch.data.sets import (
    check_dataset,
    check_seed,
    held_images,
    labels_of,
    labels_without_reading,
    make_loader,
    stratified_split,
    stratified_subset,
)

__all__ = [
    "DATASETS",
    "Data",
    "HeldImages",
    "as_path",
    "check_dataset",
    "check_seed",
    "held_images",
    "labels_of",
    "labels_without_reading",
    "load_data",
    "make_loader",
    "need",
    "stratified_split",
    "stratified_subset",
]

DATASETS = ("digits", *DOWNLOADS, "folder")


def load_data(
    name: str = "digits",
    root: str | Path = "data",
    *,
    download: bool = False,
    augment: bool = False,
    image_size: int | None = None,
    skip_corrupt: bool = False,
    in_memory: bool | None = None,
    device: str | torch.device = "cpu",
) -> Data:
    """Load a data set by name.

    Images that take less than 1 GiB as bytes are held in memory, and prepared a batch at a time;
    more are read one by one. Both give the same images, and draw from the same distribution.

    Args:
        name: one of ``DATASETS``.
        root: the folder that holds torchvision's data sets, in torchvision's own layout (SVHN's
            files in ``svhn``); ``~`` is your home. The digits need none. For ``"folder"``, what
            holds ``train`` and ``test`` (or ``val``), each with a folder of images a class.
        download: fetch a missing data set into ``root``. A download that fails leaves ``root`` as
            it was.
        augment: mirror and shift the training images at random, the "+" of the DenseNet paper's
            "C10+" (section 4.1). Not for digits, since a mirrored digit is no digit.
        image_size: for ``"folder"``: scale the shorter side of each image to so many pixels, and
            cut out the square in the middle. If None, all must have one size.
        skip_corrupt: for ``"folder"``: leave out files that cannot be read, and warn of how many.
        in_memory: True or False decides whether images are held; None by their size. Those of a
            folder are decoded once, and kept in the user's cache folder, with their statistics.
        device: where to hold them. On a GPU, batches are made there, and loaders need
            ``num_workers=0``.

    Returns:
        The data, normalised. The digits are split once and for all into 1,297 training and 500
        test images with every class in proportion. Those of a folder are always of red, green and
        blue, whatever the files hold.

    Raises:
        ValueError: ``name`` is unknown, ``root`` is a file, ``augment`` was asked of digits, an
            option does not go with the data set, or a folder or file is not as it should be.
        FileNotFoundError: the data set is not under ``root`` and ``download`` is false.
        ConnectionError: it could not be downloaded.
        RuntimeError: its files are there but damaged.
        ImportError: what reads it, scikit-learn or torchvision, is not installed.
    """
    check_choice("name", name, DATASETS)
    for option, value in (("augment", augment), ("download", download)):
        check_choice(option, value, (False, True))
    check_choice("skip_corrupt", skip_corrupt, (False, True))
    check_choice("in_memory", in_memory, (None, False, True))
    if image_size is not None:
        image_size = check_count("image_size", image_size)
    device = check_device(device)
    _check_combination(name, download, augment, image_size, skip_corrupt, in_memory, device)
    if name == "digits":
        return _load_digits(device)
    folder = as_path("root", root)
    if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        raise ValueError(f"root must be a folder, got {str(folder)!r}, which is or is in a file")
    if name == "folder":
        return load_folder(
            folder,
            augment=augment,
            image_size=image_size,
            skip_corrupt=skip_corrupt,
            in_memory=in_memory,
            device=device,
        )
    return load_downloaded(
        name, folder, download=download, augment=augment, in_memory=in_memory, device=device
    )


def _check_combination(
    name: str,
    download: bool,
    augment: bool,
    image_size: int | None,
    skip_corrupt: bool,
    in_memory: bool | None,
    device: torch.device,
) -> None:
    if augment and name in ("digits", "svhn"):
        raise ValueError(f"augment must be False for {name!r} (no mirrored digits), got True")
    if name != "folder":
        if image_size is not None:
            raise ValueError(f"image_size must be None for {name!r}, got {image_size}")
        if skip_corrupt:
            raise ValueError(f"skip_corrupt must be False for {name!r}, got True")
    elif download:
        raise ValueError("download must be False for 'folder', which is your own, got True")
    if in_memory is False and name == "digits":
        raise ValueError("in_memory must be None or True for 'digits', got False")
    if in_memory is False and device.type != "cpu":
        raise ValueError(f"device must be 'cpu' where in_memory is False, got {str(device)!r}")


def _load_digits(device: torch.device) -> Data:
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
    images, labels = images.to(device), labels.to(device)
    names = tuple(str(digit) for digit in bunch.target_names)
    return Data(
        "digits",
        TensorDataset(images[train], labels[train]),
        TensorDataset(images[test], labels[test]),
        names,
        (1, 8, 8),
    )
