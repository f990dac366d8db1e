"""Images per second with the paper's augmentation, beside torchvision's v2 transforms.

    uv run python benchmarks/data.py --root CIFAR10_FOLDER
    uv run python benchmarks/data.py --images 5000 --rounds 3

The folder holds train and test, with a folder of images for each class; without one, random images
of 32×32 pixels are written for the time of the run. Every candidate makes batches of 64 of the same
images, mirrored, shifted and normalised, in one run and in turn. "In memory" and "from memory" are
bytes that have been decoded before; "files" are decoded each time. It prints images per second and
the ratio to torchvision's v2 transforms of files without workers.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.io import write_jpeg
from torchvision.transforms import v2
from tqdm import tqdm

from densenet_from_scratch.arguments import check_count
from densenet_from_scratch.data import HeldImages, load_data, make_loader
from densenet_from_scratch.measure import seconds_side_by_side

BATCH = 64
REFERENCE = "v2, files, 0 workers"


class FromMemory(Dataset):
    """Torchvision's transforms of images that are held as bytes, one by one."""

    def __init__(self, held: HeldImages, transform: Callable) -> None:
        self.held, self.transform = held, transform

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.held.images[index]), int(self.held.targets[index])


def write_images(root: Path, count: int) -> None:
    """Write random images of two classes."""
    for part, number in (("train", count), ("test", 2)):
        for index in range(number):
            folder = root / part / str(index % 2)
            folder.mkdir(parents=True, exist_ok=True)
            image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
            write_jpeg(image, str(folder / f"{index}.jpg"), quality=95)


def candidates(root: Path, count: int) -> dict[str, Callable[[], Any]]:
    """Return a function that reads ``count`` images once for every candidate, by name."""
    held, files = (
        load_data("folder", root, augment=True, in_memory=way).train for way in (True, False)
    )
    size = held.images.shape[2:]
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(size, padding=4),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(held.mean, held.std),
        ]
    )
    theirs = ImageFolder(str(root / "train"), v2.Compose([v2.ToImage(), transform]))
    order = torch.randperm(len(held))[:count].tolist()

    def run(dataset: Dataset, workers: int, make: Callable) -> Callable[[], int]:
        part = Subset(dataset, order)
        return lambda: sum(
            len(labels) for _, labels in make(part, BATCH, shuffle=True, num_workers=workers)
        )

    runs = {"ours, in memory, 0 workers": run(held, 0, make_loader)}
    for workers in (0, 2):
        runs |= {
            f"ours, files, {workers} workers": run(files, workers, make_loader),
            f"v2, from memory, {workers} workers": run(
                FromMemory(held, transform), workers, DataLoader
            ),
            f"v2, files, {workers} workers": run(theirs, workers, DataLoader),
        }
    return runs


def table(seconds: dict[str, list[float]], images: int) -> str:
    """Write the results as text; ratios are taken within rounds, which saw the same machine."""
    lines = [f"{'':30}{'images per second':>18}{'ratio':>8}"]
    for name, times in seconds.items():
        pairs = zip(seconds[REFERENCE], times, strict=True)
        ratio = median(reference / own for reference, own in pairs)
        lines.append(f"{name:30}{images / median(times):18,.0f}{ratio:8.2f}")
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, help="folder with train and test (random images)")
    parser.add_argument("--images", type=int, default=10_000, help="how many each time")
    parser.add_argument("--rounds", type=int, default=3, help="timings of each")
    options = parser.parse_args()
    try:
        check_count("--images", options.images, minimum=2)
        check_count("--rounds", options.rounds)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root
        if root is None:
            root = Path(scratch)
            os.environ["XDG_CACHE_HOME"] = scratch  # nothing of it is worth keeping
            write_images(root, options.images)
        runs = candidates(root, options.images)
        bar = tqdm(total=len(runs) * (options.rounds + 1), mininterval=1.0)

        def counted(run: Callable[[], int]) -> Callable[[], int]:
            return lambda: (bar.update(), run())[1]

        images = next(iter(runs.values()))()
        seconds = seconds_side_by_side(
            {name: counted(run) for name, run in runs.items()}, options.rounds
        )
        bar.close()
    print(table(seconds, images))


if __name__ == "__main__":
    main()
