"""What every data set shares: the pair of its parts, and checks of what the user gives."""

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset


@dataclass(frozen=True)
class Data:
    """A data set in two parts, and what a network must know about it.

    Attributes:
        name: the name :func:`~densenet_from_scratch.data.load_data` was called with.
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
