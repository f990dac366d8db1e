"""What a training run leaves in its folder: its history, and checkpoints to go on from."""

import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import default_collate

from densenet_from_scratch.arguments import check_choice
from densenet_from_scratch.data import as_path, labels_without_reading

RUN_FILES = ("last.pt", "best.pt", "history.json", "history.csv")


@dataclass
class History:
    """What happened in each epoch of a training run.

    Attributes:
        train_loss: mean cross-entropy over the training images as they were trained on, in nats.
        train_accuracy: share of them classified rightly.
        eval_loss: mean cross-entropy over the evaluation images after the epoch.
        eval_accuracy: share of them classified rightly.
        seconds: time for training and evaluation.
        interrupted: someone stopped the run before its last epoch.
    """

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    eval_loss: list[float] = field(default_factory=list)
    eval_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    interrupted: bool = False

    def __len__(self) -> int:
        """How many epochs were finished."""
        return len(self.train_loss)

    def add(
        self,
        train_loss: float,
        train_accuracy: float,
        eval_loss: float,
        eval_accuracy: float,
        seconds: float,
    ) -> None:
        """Add what happened in one more epoch."""
        self.train_loss.append(train_loss)
        self.train_accuracy.append(train_accuracy)
        self.eval_loss.append(eval_loss)
        self.eval_accuracy.append(eval_accuracy)
        self.seconds.append(seconds)

    def save(self, path: str | Path) -> None:
        """Write to a ``.json`` or ``.csv`` file, whole or not at all; make its folder if need be.

        Raises:
            ValueError: the file's name ends otherwise.
        """
        path = as_path("path", path)
        check_choice("path's suffix", path.suffix, (".json", ".csv"))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            write_whole(path, lambda temporary: temporary.write_text(json.dumps(asdict(self))))
        else:
            write_whole(path, self._write_csv)

    def _write_csv(self, path: Path) -> None:
        columns = [f.name for f in fields(self) if f.name != "interrupted"]
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *columns])
            rows = zip(*(getattr(self, column) for column in columns), strict=True)
            writer.writerows([epoch, *row] for epoch, row in enumerate(rows, start=1))


def signature(model: nn.Module) -> list[tuple[str, tuple[int, ...], str, bool]]:
    """What a checkpoint shares with its network: names in order, shapes, types, and what learns."""
    return [
        (name, tuple(tensor.shape), str(tensor.dtype), tensor.requires_grad)
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
    ]


def settings_of(model: nn.Module) -> dict[str, str]:
    """What a network computes with besides its tensors: drop rates, strides, paddings, eps, ..."""
    return {
        f"{name}.{setting}": repr(value)
        for name, part in model.named_modules()
        for setting, value in vars(part).items()
        if isinstance(value, float) or setting in getattr(part, "__constants__", ())
    }


def fingerprint(dataset: Any) -> dict[str, Any]:
    """What tells a data set from another of its length, without reading much of it.

    Returns:
        Under ``"labels"`` the hash of all labels, or None where only reading tells them; under
        ``"images"`` some numbers of the first and of the last image, or None where they differ from
        one reading to the next, as with random augmentation.
    """
    labels = labels_without_reading(dataset)
    marks: dict[str, Any] = {"labels": None, "images": None}
    if labels is not None:
        marks["labels"] = hashlib.sha256(str(labels.tolist()).encode()).hexdigest()
    with suppress(Exception):  # an image that cannot be read is training's business
        images = [[_read(dataset, index, seed) for seed in range(4)] for index in (0, -1)]
        if all(one.equal(other) for one, *others in images for other in others):
            marks["images"] = [readings[0] for readings in images]
    return marks


def _read(dataset: Any, index: int, seed: int) -> Tensor:
    """Return at most 256 to 511 numbers of an image, the same each time the seed is the same."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        image, _ = default_collate([dataset[index % len(dataset)]])
    finally:
        torch.set_rng_state(state)
    numbers = image.detach().flatten()
    return numbers[:: max(1, len(numbers) // 256)].to("cpu", torch.float32, copy=True)


def _is_other(mark: Any, saved: Any) -> bool:
    """Compare two marks of :func:`fingerprint`; images up to rounding, which machines differ in."""
    if mark is None or saved is None:
        return False
    if isinstance(mark, str):
        return mark != saved
    pairs = [(one, other.cpu()) for one, other in zip(mark, saved, strict=True)]
    return not all(
        one.shape == other.shape and one.allclose(other, 1e-3, 1e-3, equal_nan=True)
        for one, other in pairs
    )


def check_run_dir(run_dir: Path, resume: bool) -> None:
    """Refuse to write over a run, or where nothing can be written; leave nothing behind."""
    shown = repr(str(run_dir))
    try:
        there = [name for name in RUN_FILES if (run_dir / name).exists()]
        missing = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=run_dir).close()
        finally:
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"run_dir must be a folder to write to, got {shown}: {why}") from error
    if resume and "last.pt" not in there:
        raise FileNotFoundError(f"run_dir must hold last.pt to resume from, got {shown}")
    if there and not resume:
        raise FileExistsError(
            f"run_dir must hold no run yet, got {shown} with {', '.join(there)}: go on from "
            "last.pt with resume=True (--resume), or name another folder"
        )


def save_run(
    run_dir: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    run: dict[str, Any],
    history: History,
) -> None:
    """Write the state after an epoch, and ``run``: what a run that goes on must have in common."""
    run_dir.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "history": asdict(history),
        **run,
    }
    # The best first: a run stopped between the two is resumed an epoch earlier and finds it again.
    if history.eval_accuracy[-1] == max(history.eval_accuracy):
        write_whole(run_dir / "best.pt", lambda temporary: torch.save(state, temporary))
    write_whole(run_dir / "last.pt", lambda temporary: torch.save(state, temporary))
    history.save(run_dir / "history.json")
    history.save(run_dir / "history.csv")


def read_checkpoint(run_dir: Path, run: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the state in ``last.pt``, if it is whole and has all of ``run`` in common."""
    path = run_dir / "last.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        saved = {name: state[name] for name in ("recipe", "images", "network")}
        History(**state["history"])
        if not {"model", "optimizer", "scheduler"} <= set(state):
            raise KeyError
    except Exception as error:
        message = (
            f"run_dir must hold a last.pt that is whole, got {str(run_dir)!r}, where it is not"
        )
        raise ValueError(message) from error
    if saved["recipe"] != run["recipe"]:
        differing = [k for k, v in run["recipe"].items() if saved["recipe"].get(k) != v]
        raise ValueError(f"recipe must be that of {path}; it differs in {', '.join(differing)}")
    if saved["images"] != run["images"]:
        raise ValueError(
            f"train_set and eval_set must be those of {path}, with {saved['images']} images, got "
            f"{run['images']}"
        )
    if saved["network"] != run["network"]:
        differing = [one for one in run["network"] if one not in saved["network"]]
        name = differing[0][0] if differing else "the order or number of its parts"
        raise ValueError(f"model must be the network of {path}; it differs in {name}")
    # Checkpoints of earlier versions have neither of the following.
    settings, saved_settings = run["settings"], state.get("settings", run["settings"])
    for name in sorted(settings.keys() | saved_settings.keys()):
        value, other = settings.get(name, "none"), saved_settings.get(name, "none")
        if value != other:
            raise ValueError(
                f"model must be the network of {path}, with {name} = {other}, got {value}"
            )
    for name, marks in state.get("data", {}).items():
        for part, mark in marks.items():
            if _is_other(run["data"][name][part], mark):
                what = "labels" if part == "labels" else "first or last image"
                raise ValueError(f"{name} must be that of {path}, got one with other {what}")
    return state


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside ``path`` and rename: a reader finds the old file or the new, never half."""
    temporary = path.with_name(path.name + ".part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
