"""Folders of image files: what is read, what is refused, and what is kept for the next time.

The images are made here, a few pixels each.
"""

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from densenet_from_scratch import load_data
from densenet_from_scratch.data import HeldImages, labels_of, make_loader, stratified_split
from densenet_from_scratch.data import folder as folder_module
from densenet_from_scratch.data.basics import as_path
from densenet_from_scratch.data.cache import (
    cache_folder,
    fingerprint_of,
    read_facts,
    read_tensors,
    write_facts,
    write_tensors,
)
from densenet_from_scratch.data.folder import FolderImages
from densenet_from_scratch.data.pictures import read_picture
from densenet_from_scratch.data.scan import scan
from densenet_from_scratch.train import Recipe, train
from densenet_from_scratch.train.__main__ import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "densenet_from_scratch"


def write_image(path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> None:
    """Write random pixels, width and height as given, without loss if the ending is png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two classes: three images to train with and two to test with."""
    folder = tmp_path / "pictures"
    names = ("train/cat/a", "train/cat/b", "train/dog/c", "test/cat/d", "test/dog/e")
    for seed, name in enumerate(names):
        write_image(folder / f"{name}.png", seed)
    return folder


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


# --- What is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [None, True, False])
def test_what_a_folder_holds(in_memory, root):
    data = load_data("folder", root, in_memory=in_memory)
    assert (data.name, data.class_names, data.image_shape) == ("folder", ("cat", "dog"), (3, 8, 8))
    assert (len(data.train), len(data.test)) == (3, 2)
    assert isinstance(data.train, FolderImages if in_memory is False else HeldImages)
    assert labels_of(data.train).tolist() == [0, 0, 1]
    raw = torch.stack([pixels(path) for path in sorted(root.rglob("train/*/*.png"))]) / 255
    mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3), correction=0)
    expected = (raw - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(torch.stack([image for image, _ in data.train]), expected)
    assert [label for _, label in data.train] == [0, 0, 1]
    image = (pixels(root / "test/dog/e.png") / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(data.test[-1][0], image)


def test_a_folder_is_read_whatever_the_default_device_is(root):
    torch.set_default_device("meta")
    try:
        data = load_data("folder", root)
    finally:
        torch.set_default_device(None)
    assert torch.equal(data.train[0][0], load_data("folder", root, in_memory=False).train[0][0])


@pytest.mark.parametrize(("augment", "batch_size"), [(False, 2), (True, 1)])
def test_both_ways_give_the_same_batches(augment, batch_size, root):
    """One by one they draw in the same order, too."""
    seen = []
    for in_memory in (True, False):
        data = load_data("folder", root, augment=augment, in_memory=in_memory)
        assert len(list(make_loader(data.test))) == 1
        torch.manual_seed(0)
        seen.append([*make_loader(data.train, batch_size), *make_loader(data.test)])
    for (images, labels), (others, other_labels) in zip(*seen, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_a_validation_folder_does_for_a_test_folder(root):
    (root / "test").rename(root / "val")
    assert len(load_data("folder", root).test) == 2
    write_image(root / "test" / "flat.png", 9)  # as in ImageNet, without classes
    assert len(load_data("folder", root).test) == 2
    write_image(root / "test" / "cat" / "x.png", 9)
    with pytest.raises(ValueError, match=r"test' must hold the same classes .*has no 'dog'"):
        load_data("folder", root)


def test_names_of_any_script_nested_folders_and_what_is_no_image(root):
    write_image(root / "train" / "cat" / "été" / "猫 1.PNG", 7)
    (root / "train" / "dog").rename(root / "train" / "Hündin 犬")
    (root / "test" / "dog").rename(root / "test" / "Hündin 犬")
    for name in (".hidden.png", "._a.jpg", "notes.txt", "Thumbs.db"):
        (root / "train" / "cat" / name).write_text("no image")
    (root / "train" / ".git").mkdir()
    data = load_data("folder", root)
    assert data.class_names == ("Hündin 犬", "cat")
    assert labels_of(data.train).tolist() == [0, 1, 1, 1]


@pytest.mark.skipif(os.name == "nt", reason="names there are no bytes")
def test_a_name_that_is_no_text(root):
    os.rename(root / "train/cat/a.png", os.fsencode(root / "train/cat") + b"/\xff.png")
    for in_memory in (True, True, False):
        assert len(load_data("folder", root, in_memory=in_memory).train) == 3
    (root / "train" / "cat" / os.fsdecode(b"\xfe.png")).write_text("text")
    with pytest.raises(ValueError, match="cannot be read as an image") as caught:
        load_data("folder", root)
    str(caught.value).encode()


def test_links_to_images_and_classes_are_followed(root, tmp_path):
    (root / "train" / "cat").rename(tmp_path / "cats")
    (root / "train" / "cat").symlink_to(tmp_path / "cats")
    assert len(load_data("folder", root).train) == 3


def save(path: Path, image: Image.Image, **options) -> torch.Tensor:
    image.save(path, **options)
    return read_picture(path)


def test_every_mode_becomes_red_green_and_blue(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    rgb = Image.fromarray(colour)
    expected = torch.from_numpy(colour).permute(2, 0, 1)
    assert torch.equal(save(tmp_path / "rgb.png", rgb), expected)

    grey = Image.fromarray(colour[..., 0])
    assert torch.equal(save(tmp_path / "grey.png", grey), expected[:1].expand(3, 4, 6))
    half = save(tmp_path / "bits.png", grey.convert("1"))
    assert set(half.unique().tolist()) == {0, 255} and len(half) == 3

    palette = rgb.quantize(256)
    assert (save(tmp_path / "palette.png", palette).int() - expected.int()).abs().max() < 64
    assert save(tmp_path / "cmyk.jpg", rgb.convert("CMYK")).shape == (3, 4, 6)
    green = Image.new("CMYK", (8, 8), (255, 0, 255, 0))
    red, greens, blue = save(tmp_path / "green.jpg", green, quality=95)[:, 4, 4].tolist()
    assert red < 60 and greens > 100 and blue < 100

    deep = Image.fromarray(colour[..., 0].astype(np.uint16) * 257)
    for name in ("deep.png", "deep.tif"):
        assert torch.equal(save(tmp_path / name, deep), expected[:1].expand(3, 4, 6)), name


def test_what_is_transparent_lies_on_white(tmp_path):
    layers = np.zeros((2, 2, 4), dtype=np.uint8)
    layers[0, 0] = (10, 20, 30, 255)
    result = save(tmp_path / "alpha.png", Image.fromarray(layers))
    assert result[:, 0, 0].tolist() == [10, 20, 30]
    assert (result.flatten(1)[:, 1:] == 255).all()
    palette = Image.fromarray(np.array([[0, 1], [1, 1]], dtype=np.uint8), "P")
    palette.putpalette([0, 0, 0, 9, 9, 9])
    result = save(tmp_path / "palette.png", palette, transparency=0)
    assert result[0].tolist() == [[255, 9], [9, 9]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_a_photograph_stands_upright(orientation, deep, tmp_path):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    turns = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.T,
        6: np.rot90(values, -1),
        7: values[::-1, ::-1].T,
        8: np.rot90(values),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(values.astype(np.uint16) * 257 if deep else values)
    result = save(tmp_path / "turned.png", image, exif=exif)
    assert result[0].tolist() == turns[orientation].tolist()


def test_the_middle_is_cut_out_and_scaled(root, tmp_path):
    """As torchvision does it in two steps."""
    for seed, shape in enumerate(((12, 4), (4, 12), (8, 8))):
        write_image(tmp_path / "long.png", seed, shape)
        for size in (2, 4, 16):
            both = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
            expected = np.array(both(Image.open(tmp_path / "long.png")))
            image = read_picture(tmp_path / "long.png", size)
            assert (image.permute(1, 2, 0).int() - torch.from_numpy(expected)).abs().max() <= 1
    for seed, name in enumerate(("train/cat/tall.png", "test/dog/wide.png")):
        write_image(root / name, seed, ((5, 40), (3000, 1))[seed])
    for in_memory in (True, False):
        data = load_data("folder", root, image_size=16, in_memory=in_memory)
        assert data.image_shape == (3, 16, 16) == data.train[0][0].shape == data.test[2][0].shape


def test_it_trains_with_a_last_batch_of_one(root):
    data = load_data("folder", root, augment=True)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    for workers in (0, 1):
        history = train(
            network, data.train, data.test, Recipe(1, 2), num_workers=workers, progress=False
        )
        assert len(history) == 1


def test_a_channel_that_is_the_same_everywhere(root):
    for path in root.rglob("*.png"):
        Image.new("RGB", (8, 8), (7, 0, 255)).save(path)
    assert all((image == 0).all() for image, _ in load_data("folder", root).train)


def test_the_command_line_reads_a_folder(root, tmp_path, capsys):
    write_image(root / "train" / "dog" / "large.jpg", 5, (50, 40))
    (root / "train" / "dog" / "bad.jpg").write_text("text")
    command = f"--data folder --root {root} --depth 10 --growth-rate 2 --epochs 1 --device cpu"
    with pytest.raises(SystemExit, match=r"^error: images must have one size"):
        main([*command.split(), "--skip-corrupt"])
    with pytest.raises(SystemExit, match=r"^error: '.*bad.jpg' cannot be read"):
        main([*command.split(), "--image-size", "16"])
    for more in ("--on-device", "--no-in-memory --workers 0"):
        with pytest.warns(UserWarning, match="left out 1 of 7 files"):
            main([*command.split(), "--image-size", "16", "--skip-corrupt", *more.split()])
        assert "after 1 epoch: test error" in capsys.readouterr().out


# --- What is refused -----------------------------------------------------------------------------


def remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no test folder": (
        lambda root: (root / "test").rename(root / "testing"),
        r"root must hold the folders train and test \(or val\), got '{root}' with 'testing', 'tra",
    ),
    "a folder too high": (
        lambda root: [
            (root / "inner").mkdir(),
            (root / "train").rename(root / "inner/train"),
            (root / "test").rename(root / "inner/test"),
        ],
        r"root must hold .*; did you mean '{root}/inner'\?",
    ),
    "no classes": (
        lambda root: [
            (root / "train").rename(root / "old"),
            write_image(root / "train/a.png", 0),
        ],
        "'{root}/train' must hold a folder of images for each class, got none",
    ),
    "no images": (
        lambda root: [remove_all(folder) for folder in root.glob("*/*")],
        "'{root}/train/cat' must hold an image of its class at least, got none",
    ),
    "one class": (
        lambda root: [
            folder.rename(root / f"old {number}")
            for number, folder in enumerate(sorted(root.glob("*/dog")))
        ],
        "'{root}/train' must hold a folder for each of two classes at least, got one, 'cat'",
    ),
    "an empty class": (
        lambda root: remove_all(root / "test/dog"),
        "'{root}/test/dog' must hold an image of its class",
    ),
    "another class in training": (
        lambda root: write_image(root / "train/cow/a.png", 0),
        "'{root}/test' must hold the same classes as '{root}/train', but has no 'cow'",
    ),
    "another class in testing": (
        lambda root: write_image(root / "test/cow/a.png", 0),
        "'{root}/train' must hold the same classes as '{root}/test', but has no 'cow'",
    ),
    "a text": (
        lambda root: (root / "test/dog/n.jpg").write_text("text"),
        "'{root}/test/dog/n.jpg' cannot be read as an image: it is no image; mend or",
    ),
    "an empty file": (
        lambda root: (root / "test/dog/n.jpg").write_text(""),
        "'{root}/test/dog/n.jpg' cannot be read as an image: it is no image; mend or",
    ),
    "a file cut short": (
        lambda root: (root / "test/dog/e.png").write_bytes(
            (root / "test/dog/e.png").read_bytes()[:120]
        ),
        "'{root}/test/dog/e.png' cannot be read as an image: .*; mend or remove",
    ),
    "a pixel": (
        lambda root: write_image(root / "train/cat/p.png", 0, (1, 1)),
        "'{root}/train/cat/p.png' cannot be read as an image: it has a single pixel; mend or",
    ),
    "floating-point numbers": (
        lambda root: Image.new("F", (8, 8)).save(root / "train/cat/p.tif"),
        "'{root}/train/cat/p.tif' cannot be read as an image: its pixels are floating-point",
    ),
    "a link to nowhere": (
        lambda root: (root / "train/cat/l.png").symlink_to("nowhere"),
        "'{root}/train/cat/l.png' cannot be read as an image: No such file",
    ),
    "a link to itself": (
        lambda root: (root / "train/cat/l.png").symlink_to("l.png"),
        "'{root}/train/cat/l.png' cannot be read: Too many levels of symbolic links",
    ),
    "a link upwards": (
        lambda root: (root / "train/cat/up").symlink_to(root / "train"),
        "'{root}/train/cat/up' must not be a link to a folder that it is in",
    ),
    "a link in a circle": (
        lambda root: (root / "train/cat/up").symlink_to(root / "train/cat"),
        "'{root}/train/cat/up' must not be a link to a folder that it is in",
    ),
    "several sizes": (
        lambda root: write_image(root / "test/cat/z.png", 0, (9, 7)),
        "images must have one size, got 8×8 of '{root}/train/cat/a.png' and 9×7 of '{root}/test/c",
    ),
    "two texts": (
        lambda root: [
            (root / f"train/{name}.jpg").write_text("text") for name in ("cat/z", "dog/z")
        ],
        "'{root}/train/cat/z.jpg' cannot .*, nor can 1 other file; mend .* \\(--skip-corrupt\\)$",
    ),
    "only texts": (
        lambda root: [path.write_text("text") for path in root.glob("train/*/*")],
        "'{root}/train' must hold an image that can be read, got none; '{root}/train/dog/c.png': i",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_that_is_not_as_it_should_be(case, in_memory, root, cache):
    spoil, message = BAD[case]
    spoil(root)
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            load_data("folder", root, in_memory=in_memory)
        assert "\n" not in str(caught.value)
        assert re.match(message.replace("{root}", re.escape(str(root))), str(caught.value))
    assert not cache.exists()


def test_a_root_that_is_missing_or_a_file(tmp_path, root):
    with pytest.raises(
        FileNotFoundError,
        match=r"^root must be a .* with train and test, .*nowhere', which does not exist$",
    ):
        load_data("folder", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"^root must be a folder, got '.*a.png', which is or is"):
        load_data("folder", root / "train/cat/a.png")
    with pytest.raises(ValueError, match=r"^root must hold the folders .* with no folder$"):
        load_data("folder", root / "train/cat")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("folder", {"image_size": 0}, "image_size must be an integer of at least 1, got 0"),
        ("folder", {"skip_corrupt": 1}, "skip_corrupt must be one of False, True, got 1"),
        ("folder", {"in_memory": 0}, "in_memory must be one of None, False, True, got 0"),
        ("folder", {"download": True}, "download must be False for 'folder'"),
        ("folder", {"device": "cuda:99"}, "device must exist"),
        ("cifar10", {"image_size": 32}, "image_size must be None for 'cifar10', got 32"),
        ("digits", {"skip_corrupt": True}, "skip_corrupt must be False for 'digits'"),
        ("digits", {"in_memory": False}, "in_memory must be None or True for 'digits'"),
        ("svhn", {"augment": True}, r"augment must be False for 'svhn' \(no mirrored digits\)"),
    ],
)
def test_options_that_do_not_go_together(name, options, message, root):
    with pytest.raises(ValueError, match=f"^{message}"):
        load_data(name, root, **options)


def test_damaged_files_are_left_out_by_choice_and_counted(root):
    (root / "train/cat/0.jpg").write_text("text")
    write_image(root / "test/dog/0.png", 0, (1, 1))
    for in_memory in (True, True, False):  # the second time from the cache
        with pytest.warns(UserWarning, match=r"^left out 2 of 7 files .* '.*/cat/0.jpg': it is no"):
            data = load_data("folder", root, skip_corrupt=True, in_memory=in_memory)
        assert (len(data.train), len(data.test)) == (3, 2)
        assert labels_of(data.train).tolist() == [0, 0, 1]
        assert [label for _, label in data.test] == [0, 1]
    with pytest.raises(ValueError, match="nor can 1 other"):
        load_data("folder", root)
    (root / "train/dog/c.png").write_text("text")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"train/dog' must hold an image that can be read, got no"),
    ):
        load_data("folder", root, skip_corrupt=True)


def test_a_file_that_is_damaged_later(root):
    data = load_data("folder", root, in_memory=False)
    (root / "train/cat/a.png").write_text("text")
    with pytest.raises(ValueError, match=r"^'.*a.png' cannot be read as an image: it is no image"):
        data.train[0]


# --- What is kept --------------------------------------------------------------------------------


@pytest.fixture
def readings(monkeypatch) -> list[Path]:
    """The files that were read."""
    seen: list[Path] = []

    def read(path, size=None):
        seen.append(path)
        return read_picture(path, size)

    monkeypatch.setattr(folder_module, "read_picture", read)
    return seen


def test_files_are_read_once_until_one_changes(root, readings, cache):
    first = load_data("folder", root)
    assert len(set(readings)) == 5
    readings.clear()
    second = load_data("folder", root)
    load_data("folder", root, in_memory=False)
    assert not readings
    assert torch.equal(first.train.images, second.train.images)
    assert (first.train.mean, first.train.std) == (second.train.mean, second.train.std)
    assert len(list(cache.iterdir())) == 2
    write_image(root / "train/cat/a.png", 77)
    changed = load_data("folder", root)
    assert readings and not torch.equal(first.train.images, changed.train.images)
    assert len(list(cache.iterdir())) == 2, "what is out of date is written over"
    assert load_data("folder", root, image_size=4).image_shape == (3, 4, 4)


@pytest.mark.parametrize("ending", ["json", "pt"])
def test_a_damaged_cache_is_made_anew(ending, root, readings, cache):
    first = load_data("folder", root)
    [file] = cache.glob(f"*.{ending}")
    for content in (file.read_bytes()[:-9], b"", b"[]", b'{"key": 1}'):
        file.write_bytes(content)
        readings.clear()
        assert torch.equal(load_data("folder", root).train.images, first.train.images)
        assert readings


def test_a_cache_that_cannot_be_written_is_no_error(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_data("folder", root).train) == 3
    assert (tmp_path / "file").read_text() == "mine"


def test_a_cache_is_written_whole_or_not_at_all(cache, monkeypatch):
    place = cache / "x.pt"
    write_tensors(place, "a", {"train": torch.ones(3)})
    save_tensors = torch.save

    def fail(content, file):
        save_tensors(content, file)
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(torch, "save", fail)
    write_tensors(place, "b", {"train": torch.zeros(3)})
    assert [path.name for path in cache.iterdir()] == ["x.pt"]
    assert read_tensors(place, "b") is None
    assert torch.equal(read_tensors(place, "a")["train"], torch.ones(3))


def test_facts_are_found_by_their_key(cache):
    write_facts(cache / "x.json", "a", {"mean": [0.1]})
    assert read_facts(cache / "x.json", "a")["mean"] == [0.1]
    assert read_facts(cache / "x.json", "b") is None
    assert fingerprint_of("a", 1) == fingerprint_of("a", 1) != fingerprint_of("a", 2)


def test_nothing_is_written_beside_the_data(root):
    before = sorted(root.rglob("*"))
    load_data("folder", root)
    assert sorted(root.rglob("*")) == before


def test_the_cache_is_in_the_home_folder_unless_said_otherwise(monkeypatch):
    expected = as_path("home", "~/.cache/densenet_from_scratch")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == expected
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == expected


def test_without_a_home_nothing_is_kept(root, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody-has-this-name").expanduser())
    monkeypatch.chdir(root)
    for _ in range(2):
        assert len(load_data("folder", ".").train) == 3
    assert sorted(path.name for path in root.iterdir()) == ["test", "train"]


def test_a_file_that_has_become_readable_is_not_refused(root, monkeypatch):
    """Its rights may have changed, which leaves no mark on it."""

    def refuse(path, size=None):
        if path.name == "b.png":
            raise ValueError("Permission denied")
        return read_picture(path, size)

    monkeypatch.setattr(folder_module, "read_picture", refuse)
    with pytest.warns(UserWarning, match="b.png': Permission denied"):
        load_data("folder", root, skip_corrupt=True)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "cache"))
    assert len(load_data("folder", root).train) == 3


def test_what_is_too_large_is_read_one_by_one(root, monkeypatch):
    monkeypatch.setattr("densenet_from_scratch.data.held.LIMIT", 5 * 3 * 64)
    assert isinstance(load_data("folder", root).train, FolderImages)
    monkeypatch.setattr("densenet_from_scratch.data.held.LIMIT", 5 * 3 * 64 + 1)
    assert isinstance(load_data("folder", root).train, HeldImages)


def test_a_split_of_what_is_held(root):
    write_image(root / "train" / "dog" / "x.png", 8)
    data = load_data("folder", root)
    first, second = stratified_split(data.train, 0.5)
    [(images, labels)] = make_loader(first, 4)
    assert labels.tolist() == labels_of(first).tolist()
    assert torch.equal(images[1], data.train[first.indices[1]][0])
    assert sorted(first.indices + second.indices) == [0, 1, 2, 3]


def test_scan_orders_by_class_then_name(root):
    training, testing, names = scan(root)
    assert [path.name for path in training.paths] == ["a.png", "b.png", "c.png"]
    assert (training.labels, testing.labels, names) == ((0, 0, 1), (0, 1), ("cat", "dog"))
