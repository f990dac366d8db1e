"""Which image files lie in a folder, and of which class each is."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What torchvision's ImageFolder takes for images; other files are left alone.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TEST_FOLDERS = ("test", "val")


@dataclass(frozen=True)
class Part:
    """The images of training or of testing.

    Attributes:
        folder: where they are.
        paths: the files, in the order of their classes and then of their names.
        labels: the class number of each.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]


def scan(root: Path) -> tuple[Part, Part, tuple[str, ...]]:
    """Return the images to train with and to test with, and the names of the classes.

    Names that begin with a dot are passed over, and so are files with other endings than images
    have. Folders within the folder of a class belong to it, and links are followed.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it does not hold two parts with the same two classes or more, each with an
            image; or a link leads in a circle.
        OSError: a folder cannot be read.
    """
    if not root.exists():
        raise FileNotFoundError(
            f"root must be a folder with train and test, got {str(root)!r}, which does not exist"
        )
    folders = [root / "train", _test_folder(root)]
    classes = [_classes_of(folder) for folder in folders]
    for one, other in ((0, 1), (1, 0)):
        if extra := [name for name in classes[one] if name not in classes[other]]:
            raise ValueError(
                f"{str(folders[other])!r} must hold the same classes as {str(folders[one])!r}, "
                f"but has no {_some(extra)}"
            )
    if len(classes[0]) < 2:
        raise ValueError(
            f"{str(folders[0])!r} must hold a folder for each of two classes at least, got one, "
            f"{classes[0][0]!r}"
        )
    train, test = (_part(folder, classes[0]) for folder in folders)
    return train, test, classes[0]


def _test_folder(root: Path) -> Path:
    """ImageNet's test folder has no classes; then the validation images are meant."""
    found = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if not (root / "train").is_dir() or not found:
        there = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        inner = [name for name in there if (root / name / "train").is_dir()]
        hint = f"; did you mean {str(root / inner[0])!r}?" if inner else ""
        raise ValueError(
            f"root must hold the folders train and test (or val), got {str(root)!r} with "
            f"{_some(there) if there else 'no folder'}{hint}"
        )
    return next((folder for folder in found if _folders_in(folder)), found[0])


def _folders_in(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


def _classes_of(folder: Path) -> tuple[str, ...]:
    names = _folders_in(folder)
    if not names:
        raise ValueError(f"{str(folder)!r} must hold a folder of images for each class, got none")
    return names


def _part(folder: Path, classes: Sequence[str]) -> Part:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images_in(folder / name, (os.path.realpath(folder),)))
        if not found:
            raise ValueError(
                f"{str(folder / name)!r} must hold an image of its class at least, got none "
                f"(with an ending of {', '.join(ENDINGS)})"
            )
        paths += found
        labels += [label] * len(found)
    return Part(folder, tuple(paths), tuple(labels))


def _images_in(folder: Path, above: tuple[str, ...]) -> list[Path]:
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(f"{str(folder)!r} must not be a link to a folder that it is in")
    found: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                inner = entry.is_dir()
            except OSError as error:  # a link to itself
                raise ValueError(f"{entry.path!r} cannot be read: {error.strerror}") from error
            if inner:
                found += _images_in(Path(entry.path), (*above, real))
            elif entry.name.lower().endswith(ENDINGS):
                found.append(Path(entry.path))
    return found


def _some(names: Sequence[str]) -> str:
    """Name three, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
