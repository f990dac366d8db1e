"""Folders of image files: ImageNet, or what you have yourself.

All files are read once, for the mean and the standard deviation and to find those that cannot be
read. What came out of it is kept in the user's cache folder, until a file changes.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from densenet_from_scratch.data.basics import Data, need
from densenet_from_scratch.data.cache import (
    cache_folder,
    fingerprint_of,
    read_facts,
    read_tensors,
    write_facts,
    write_tensors,
)
from densenet_from_scratch.data.held import (
    HeldImages,
    distort,
    draw_distortions,
    fits_in_memory,
    normalise,
)
from densenet_from_scratch.data.pictures import read_picture
from densenet_from_scratch.data.scan import Part, scan

CHUNK = 64  # files that a thread reads before it reports
PARTS = ("train", "test")


class FolderImages(Dataset):
    """A data set that reads and prepares an image each time it is asked for it."""

    target_transform = None  # the targets are what comes with the images

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        size: int | None = None,
        augment: bool = False,
    ) -> None:
        """Take files and their class numbers.

        Args:
            paths: the files.
            targets: class numbers (N,).
            mean: of each channel, as :func:`~densenet_from_scratch.data.held.normalise` takes it.
            std: of each channel.
            size: as :func:`~densenet_from_scratch.data.pictures.read_picture` takes it.
            augment: mirror and shift at random.
        """
        self.paths, self.targets = [str(path) for path in paths], targets
        self.mean, self.std, self.size, self.augment = tuple(mean), tuple(std), size, augment

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[index]
        try:
            image = read_picture(Path(path), self.size).unsqueeze(0)
        except ValueError as error:
            raise ValueError(f"{path!r} cannot be read as an image: {error}") from error
        if self.augment:
            image = distort(image, *draw_distortions(1))
        return normalise(image, self.mean, self.std)[0], int(self.targets[index])


def load_folder(
    root: Path,
    *,
    augment: bool,
    image_size: int | None,
    skip_corrupt: bool,
    in_memory: bool | None,
    device: torch.device,
) -> Data:
    """Load folders of images; the arguments are those of ``load_data``.

    Raises:
        FileNotFoundError, ValueError, ImportError: as ``load_data``.
    """
    need("torchvision", "torchvision")
    *parts, classes = scan(root)
    place = cache_folder() / fingerprint_of(os.path.realpath(root), image_size)
    key = fingerprint_of(image_size, [_marks(part) for part in parts])
    found = _recall(place, key, parts, in_memory, skip_corrupt)
    if found is None:
        found = _look(parts, image_size, in_memory)
        _refuse_or_count(found, parts, skip_corrupt)
        _remember(place, key, found)
    else:
        _refuse_or_count(found, parts, skip_corrupt)

    sets: list[Dataset] = []
    count = sum(len(part.paths) for part in parts)
    held = fits_in_memory(in_memory, count, found.shape, device)
    for number, part in enumerate(parts):
        bad = set(found.bad[number])
        good = [index for index in range(len(part.paths)) if index not in bad]
        targets = torch.tensor(part.labels, device="cpu")[good]
        for label in set(range(len(classes))) - set(targets.tolist()):
            raise ValueError(
                f"{str(part.folder / classes[label])!r} must hold an image that can be read, "
                "got none"
            )
        distorted = augment and number == 0
        if held:
            images = found.images[number].to(device)
            sets.append(HeldImages(images, targets, found.mean, found.std, augment=distorted))
        else:
            paths = [part.paths[index] for index in good]
            sets.append(
                FolderImages(
                    paths, targets, found.mean, found.std, size=image_size, augment=distorted
                )
            )
    return Data("folder", sets[0], sets[1], classes, found.shape)


@dataclass
class _Found:
    """What reading all files tells. ``bad`` maps numbers of files to reasons, for each part."""

    shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    bad: list[dict[int, str]]
    images: list[Tensor]  # of the good files, for each part; empty if they are not held


def _marks(part: Part) -> list[tuple[str, int, int]]:
    """What tells that files are as they were: name, bytes and time of the last change."""
    marks = []
    for path in part.paths:
        try:
            state = path.stat()
        except OSError:  # a link to nowhere; reading says so
            marks.append((str(path), -1, 0))
        else:
            marks.append((str(path), state.st_size, state.st_mtime_ns))
    return marks


def _recall(
    place: Path, key: str, parts: list[Part], in_memory: bool | None, skip_corrupt: bool
) -> _Found | None:
    facts = read_facts(place.with_suffix(".json"), key)
    if facts is None or (any(facts["bad"]) and not skip_corrupt):
        return None  # a file that could not be read may have got its rights meanwhile
    found = _Found(
        shape=tuple(facts["shape"]),
        mean=facts["mean"],
        std=facts["std"],
        bad=[{int(index): why for index, why in bad.items()} for bad in facts["bad"]],
        images=[],
    )
    if fits_in_memory(in_memory, sum(len(part.paths) for part in parts), found.shape):
        tensors = read_tensors(place.with_suffix(".pt"), key)
        if tensors is None:
            return None
        found.images = [tensors[name] for name in PARTS]
    return found


def _remember(place: Path, key: str, found: _Found) -> None:
    names = ("shape", "mean", "std", "bad")
    write_facts(place.with_suffix(".json"), key, {name: getattr(found, name) for name in names})
    if found.images:
        tensors = dict(zip(PARTS, found.images, strict=True))
        write_tensors(place.with_suffix(".pt"), key, tensors)


def _look(parts: list[Part], image_size: int | None, in_memory: bool | None) -> _Found:
    """Read all files."""
    shape, first = _shape_of(parts[0], image_size)
    count = sum(len(part.paths) for part in parts)
    hold = fits_in_memory(in_memory, count, shape)
    histogram = torch.zeros(3, 256, dtype=torch.int64, device="cpu")
    bad: list[dict[int, str]] = []
    images: list[Tensor] = []
    with tqdm(total=count, desc="reading images", leave=False, mininterval=1.0) as bar:
        for number, part in enumerate(parts):
            bad.append({})
            size = (len(part.paths) if hold else 0, *shape)
            held = torch.empty(size, dtype=torch.uint8, device="cpu")
            for start, chunk in _read_all(part.paths, image_size):
                for index, image in enumerate(chunk, start):
                    bar.update()
                    if isinstance(image, str):
                        bad[number][index] = image
                        continue
                    if tuple(image.shape) != shape:
                        raise ValueError(
                            f"images must have one size, got {_size(shape)} of {str(first)!r} and "
                            f"{_size(image.shape)} of {str(part.paths[index])!r}; pass "
                            "image_size= (--image-size)"
                        )
                    if hold:
                        held[index] = image
                good = [image for image in chunk if not isinstance(image, str)]
                if number == 0 and good:
                    histogram += _histogram(torch.stack(good))
            if hold:
                keep = [index for index in range(len(held)) if index not in bad[number]]
                images.append(held[keep] if bad[number] else held)
    # From the counts of the 256 values the statistics come out exact, in whatever order one reads.
    values = torch.arange(256, dtype=torch.float64, device="cpu") / 255
    shares = histogram / histogram.sum(1, keepdim=True)
    mean = (shares * values).sum(1)
    std = (shares * (values - mean[:, None]).square()).sum(1).sqrt()
    std[std < 1e-6] = 1  # a channel that is the same everywhere stays as it is
    return _Found(shape, mean.tolist(), std.tolist(), bad, images)


def _shape_of(part: Part, image_size: int | None) -> tuple[tuple[int, int, int], Path]:
    for path in part.paths:
        try:
            _, height, width = read_picture(path, image_size).shape
        except ValueError as error:
            reason = str(error)
        else:
            return (3, height, width), path
    raise ValueError(
        f"{str(part.folder)!r} must hold an image that can be read, got none; "
        f"{str(path)!r}: {reason}"
    )


def _read_all(
    paths: Sequence[Path], image_size: int | None
) -> Iterator[tuple[int, list[Tensor | str]]]:
    """Yield the images of a chunk of files, or why they cannot be read, and the first's number."""

    def read(start: int) -> tuple[int, list[Tensor | str]]:
        found: list[Tensor | str] = []
        for path in paths[start : start + CHUNK]:
            try:
                found.append(read_picture(path, image_size))
            except ValueError as error:
                found.append(str(error))
        return start, found

    threads = min(32, os.cpu_count() or 1)  # Pillow decodes outside of Python's lock
    starts = range(0, len(paths), CHUNK)
    with ThreadPoolExecutor(threads) as pool:
        for begin in range(0, len(starts), 2 * threads):  # not more in memory than this
            yield from pool.map(read, starts[begin : begin + 2 * threads])


def _histogram(images: Tensor) -> Tensor:
    """Count each value of each channel, (3, 256)."""
    channels = images.transpose(0, 1).flatten(1)
    return torch.stack([channel.bincount(minlength=256) for channel in channels])


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]}×{shape[1]}"


def _refuse_or_count(found: _Found, parts: list[Part], skip_corrupt: bool) -> None:
    """Refuse files that cannot be read, or warn that they are left out."""
    bad = [
        (part.paths[index], why)
        for part, reasons in zip(parts, found.bad, strict=True)
        for index, why in reasons.items()
    ]
    if not bad:
        return
    path, why = bad[0]
    if not skip_corrupt:
        more = len(bad) - 1
        others = f", nor can {more} other file{'s' * (more > 1)}" if more else ""
        raise ValueError(
            f"{str(path)!r} cannot be read as an image: {why}{others}; mend or remove what is "
            "damaged, or pass skip_corrupt=True (--skip-corrupt)"
        )
    total = sum(len(part.paths) for part in parts)
    warnings.warn(
        f"left out {len(bad)} of {total} files that cannot be read, the first {str(path)!r}: {why}",
        stacklevel=4,
    )
