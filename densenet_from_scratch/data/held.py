"""Images that are held in memory as bytes, and distorted and normalised a batch at a time.

A data set of a gibibyte or less is read once, into one tensor. What is left to do for a batch is
a handful of tensor operations, on the CPU or on the GPU.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

LIMIT = 2**30  # bytes of all images together, up to which they are held unless you say otherwise
PADDING = 4  # pixels on each side, section 4.1 of the paper


def draw_distortions(count: int) -> tuple[Tensor, Tensor]:
    """Draw which of ``count`` images to mirror, bool (N,), and how far to shift them.

    The shifts, integers (N, 2), are the row and column where the crop of the padded image begins:
    0 to 8, and 4 leaves the image in its place. Both come from PyTorch's generator of the CPU.
    """
    mirrored = torch.rand(count, device="cpu") < 0.5
    return mirrored, torch.randint(2 * PADDING + 1, (count, 2), device="cpu")


def distort(images: Tensor, mirrored: Tensor, shifts: Tensor) -> Tensor:
    """Mirror images (N, C, H, W), pad them with black and crop them back, each in its own way."""
    mirrored, shifts = mirrored.to(images.device), shifts.to(images.device)
    channels, height, width = images.shape[1:]
    padded = F.pad(images, (PADDING,) * 4)
    # Where each row and column of the result is in the padded image: (N, H) and (N, W).
    rows = torch.arange(height, device=images.device) + shifts[:, :1]
    columns = torch.arange(width, device=images.device) + shifts[:, 1:]
    columns = torch.where(mirrored[:, None], padded.shape[3] - 1 - columns, columns)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    places = places.flatten(1)[:, None].expand(-1, channels, -1)
    return padded.flatten(2).gather(2, places).view(images.shape)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn bytes (N, C, H, W) into floats with about mean 0 and standard deviation 1.

    Args:
        images: of type uint8.
        mean: of each channel, of the training images scaled to [0, 1].
        std: their standard deviation.
    """
    shape = (len(mean), 1, 1)
    mean_of_channel = torch.tensor(mean, device=images.device).view(shape)
    std_of_channel = torch.tensor(std, device=images.device).view(shape)
    return images.to(torch.float32).div_(255).sub_(mean_of_channel).div_(std_of_channel)


class Batch(Sequence):
    """Images (N, C, H, W) and class numbers (N,) that read as N pairs but need no stacking."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index], self.labels[index]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(self.images, self.labels, strict=True))


def collate(pairs: Any) -> Any:
    """Stack pairs to a batch, as PyTorch's own function does, unless they are one already."""
    if isinstance(pairs, Batch):
        return [pairs.images, pairs.labels]
    return default_collate(pairs)


class HeldImages(Dataset):
    """A data set of images that are all in memory.

    PyTorch's ``DataLoader`` asks it for a batch at a time.

    Attributes:
        images: uint8 (N, C, H, W).
        targets: class numbers (N,), on the CPU.
    """

    target_transform = None  # the targets are what comes with the images

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augment: bool = False,
    ) -> None:
        """Hold images, with the statistics that :func:`normalise` takes.

        Args:
            images: uint8 (N, C, H, W), on any device; batches are made there.
            targets: class numbers (N,).
            mean: of each channel.
            std: of each channel.
            augment: mirror and shift at random.
        """
        self.images = images
        self.targets = torch.as_tensor(targets, dtype=torch.int64, device="cpu")
        self.mean, self.std, self.augment = tuple(mean), tuple(std), augment

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        batch = self.__getitems__([int(index) % len(self)])
        return batch.images[0], int(batch.labels[0])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        numbers = torch.tensor(indices, dtype=torch.int64, device="cpu")
        images = self.images[numbers.to(self.images.device)]
        if self.augment:
            images = distort(images, *draw_distortions(len(images)))
        return Batch(normalise(images, self.mean, self.std), self.targets[numbers])


def fits_in_memory(
    wanted: bool | None,
    images: int,
    shape: Sequence[int],
    device: torch.device | None = None,
) -> bool:
    """Tell whether to hold so many images of (C, H, W): as wanted, or None, if they are small.

    Raises:
        ValueError: they are not held, and ``device`` is not the CPU.
    """
    size = images * shape[0] * shape[1] * shape[2]
    held = size < LIMIT if wanted is None else wanted
    if not held and device is not None and device.type != "cpu":
        raise ValueError(
            f"in_memory must be True to hold {size / 2**30:.1f} GiB of images on {device}, got "
            f"{wanted}"
        )
    return held
