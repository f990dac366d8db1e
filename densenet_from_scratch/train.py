"""One training loop for every network of the course (chapters 1 and 8)."""

import csv
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, OneCycleLR
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from densenet_from_scratch.arguments import (
    check_choice,
    check_count,
    check_device,
    check_fraction,
    check_number,
)
from densenet_from_scratch.data import make_loader

SCHEDULES = ("one-cycle", "step", "constant")


@dataclass(frozen=True)
class Recipe:
    """How to train: stochastic gradient descent with momentum, and its settings.

    The defaults suit the digits. The paper's recipe for CIFAR (section 4.2) is ``Recipe(epochs=300,
    weight_decay=1e-4, schedule="step")``, with the same learning rate, momentum and batch size.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step.
        learning_rate: the highest learning rate.
        momentum: share of the last step that the next one keeps.
        nesterov: take the gradient where momentum is about to lead.
        weight_decay: strength of the pull of every weight to zero.
        schedule: ``"one-cycle"`` warms up and cools down once; ``"step"`` divides by 10 after half
            and three quarters of the epochs; ``"constant"`` stays.
        seed: fixes the order of the images, augmentation and dropout.
        amp: run the forward pass in bfloat16 where that is safe (automatic mixed precision).

    Raises:
        ValueError: a setting is out of range.
    """

    epochs: int = 8
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    seed: int = 0
    amp: bool = False

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        check_fraction("momentum", self.momentum, zero=True, one=False)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_count("seed", self.seed, minimum=0)
        check_number("learning_rate", self.learning_rate)
        check_number("weight_decay", self.weight_decay, zero=True)
        if self.nesterov and self.momentum == 0:
            raise ValueError(f"nesterov must be False where momentum is 0, got {self.nesterov!r}")


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

    def save(self, path: str | Path) -> None:
        """Write to a ``.json`` or ``.csv`` file, whole or not at all.

        Raises:
            ValueError: the file's name ends otherwise.
        """
        path = Path(path)
        check_choice("path's suffix", path.suffix, (".json", ".csv"))
        if path.suffix == ".json":
            _write_whole(path, lambda temporary: temporary.write_text(json.dumps(asdict(self))))
        else:
            _write_whole(path, self._write_csv)

    def _write_csv(self, path: Path) -> None:
        columns = [f.name for f in fields(self) if f.name != "interrupted"]
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *columns])
            rows = zip(*(getattr(self, column) for column in columns), strict=True)
            writer.writerows([epoch, *row] for epoch, row in enumerate(rows, start=1))


def train(
    model: nn.Module,
    train_set: Dataset,
    eval_set: Dataset,
    recipe: Recipe | None = None,
    *,
    device: str | torch.device = "auto",
    run_dir: str | Path | None = None,
    resume: bool = False,
    num_workers: int = 0,
    progress: bool = True,
    label: str = "training",
) -> History:
    """Train ``model`` in place, with a progress bar, and return its history.

    The same model, data and recipe give the same weights on the same machine. Interrupting it
    (Ctrl-C, or the notebook's stop button) ends training early: the model keeps what it has
    learned and the history holds the finished epochs.

    Args:
        model: maps images (N, C, H, W) to logits (N, classes).
        train_set: pairs of image and class number to learn from.
        eval_set: pairs to evaluate after each epoch. If you choose by its accuracy, as the best
            checkpoint does, it must not be the test set: use a part of the training set.
        recipe: the settings; ``Recipe()`` if not given.
        device: ``"auto"`` uses a GPU when there is one.
        run_dir: a folder for ``last.pt``, ``best.pt`` (highest evaluation accuracy so far),
            ``history.json`` and ``history.csv``, written after each epoch.
        resume: go on from ``last.pt`` in ``run_dir``, as if the run had never stopped.
        num_workers: processes that prepare images.
        progress: show the bar.
        label: what stands before the bar.

    Raises:
        ValueError: an argument is out of range, ``device`` does not exist here, ``resume`` without
            ``run_dir``, or the checkpoint belongs to another recipe.
        FileNotFoundError: ``resume`` and no ``last.pt`` in ``run_dir``.
        FloatingPointError: the loss became infinite or NaN.
    """
    recipe = recipe or Recipe()
    device = check_device(device)
    loader = make_loader(
        train_set, recipe.batch_size, shuffle=True, seed=recipe.seed, num_workers=num_workers
    )
    eval_loader = make_loader(eval_set, batch_size=256, num_workers=num_workers)
    if resume and run_dir is None:
        raise ValueError("run_dir must be given to resume a run, got None")

    model.to(device)
    optimizer = SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    scheduler = _make_scheduler(optimizer, recipe, steps_per_epoch=len(loader))
    history = History()
    if resume:
        history = _load_checkpoint(Path(str(run_dir)), model, optimizer, scheduler, recipe, device)

    bar = tqdm(
        total=recipe.epochs * len(loader),
        initial=len(history) * len(loader),
        desc=label,
        disable=not progress,
        leave=False,
        mininterval=1.0,  # seconds; a notebook gets several messages for each redraw
    )
    try:
        for epoch in range(len(history), recipe.epochs):
            started = perf_counter()
            # Every epoch has a seed of its own, so a resumed run draws the same numbers.
            torch.manual_seed(recipe.seed + 1_000_003 * epoch)
            loader.generator.manual_seed(recipe.seed + 1_000_003 * epoch)
            train_loss, train_accuracy = _train_epoch(
                model, loader, optimizer, scheduler, recipe.amp, device, bar
            )
            eval_loss, eval_accuracy = evaluate(model, eval_loader, device)
            history.train_loss.append(train_loss)
            history.train_accuracy.append(train_accuracy)
            history.eval_loss.append(eval_loss)
            history.eval_accuracy.append(eval_accuracy)
            history.seconds.append(perf_counter() - started)
            bar.set_postfix(loss=f"{train_loss:.3f}", accuracy=f"{eval_accuracy:.3f}")
            if run_dir is not None:
                _save_run(Path(run_dir), model, optimizer, scheduler, recipe, history)
    except KeyboardInterrupt:
        history.interrupted = True
        tqdm.write(f"{label}: stopped after {len(history)} of {recipe.epochs} epochs")
    finally:
        bar.close()
        model.eval()
    return history


def evaluate(
    model: nn.Module, data: Dataset | DataLoader, device: str | torch.device = "auto"
) -> tuple[float, float]:
    """Return mean cross-entropy in nats and accuracy of ``model``, leaving it in evaluation mode.

    Args:
        model: maps images (N, C, H, W) to logits (N, classes).
        data: a data set, or a loader.
        device: where to run; the model is moved there.
    """
    device = check_device(device)
    loader = data if isinstance(data, DataLoader) else make_loader(data, batch_size=256)
    model.to(device).eval()
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            logits = model(images)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += _count_correct(logits, labels)
            count += len(labels)
    return loss / count, correct / count


def _train_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: SGD,
    scheduler: LRScheduler,
    amp: bool,
    device: torch.device,
    bar: tqdm,
) -> tuple[float, float]:
    model.train()
    total_loss, correct, count = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss.item()}; try a lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not isinstance(scheduler, MultiStepLR):
            scheduler.step()
        total_loss += loss.item() * len(labels)
        correct += _count_correct(logits, labels)
        count += len(labels)
        bar.update()
    if isinstance(scheduler, MultiStepLR):
        scheduler.step()
    return total_loss / count, correct / count


def _count_correct(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(dim=1) == labels).sum())


def _make_scheduler(optimizer: SGD, recipe: Recipe, steps_per_epoch: int) -> LRScheduler:
    if recipe.schedule == "one-cycle":
        total_steps = recipe.epochs * steps_per_epoch
        return OneCycleLR(optimizer, recipe.learning_rate, total_steps, cycle_momentum=False)
    if recipe.schedule == "step":
        milestones = [math.ceil(recipe.epochs * share) for share in (0.5, 0.75)]
        return MultiStepLR(optimizer, milestones)
    return LambdaLR(optimizer, lambda step: 1.0)


def _save_run(
    run_dir: Path,
    model: nn.Module,
    optimizer: SGD,
    scheduler: LRScheduler,
    recipe: Recipe,
    history: History,
) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "recipe": asdict(recipe),
        "history": asdict(history),
    }
    # The best first: a run stopped between the two is resumed an epoch earlier and finds it again.
    if history.eval_accuracy[-1] == max(history.eval_accuracy):
        _write_whole(run_dir / "best.pt", lambda temporary: torch.save(state, temporary))
    _write_whole(run_dir / "last.pt", lambda temporary: torch.save(state, temporary))
    history.save(run_dir / "history.json")
    history.save(run_dir / "history.csv")


def _load_checkpoint(
    run_dir: Path,
    model: nn.Module,
    optimizer: SGD,
    scheduler: LRScheduler,
    recipe: Recipe,
    device: torch.device,
) -> History:
    path = run_dir / "last.pt"
    if not path.exists():
        raise FileNotFoundError(f"run_dir must hold last.pt to resume from, got {str(run_dir)!r}")
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        saved = state["recipe"]
    except Exception as error:
        message = (
            f"run_dir must hold a last.pt that is whole, got {str(run_dir)!r}, where it is not"
        )
        raise ValueError(message) from error
    if saved != asdict(recipe):
        differing = [k for k, v in asdict(recipe).items() if saved.get(k) != v]
        raise ValueError(f"recipe must be that of {path}; it differs in {', '.join(differing)}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return History(**state["history"])


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside ``path`` and rename: a reader finds the old file or the new, never half."""
    temporary = path.with_name(path.name + ".part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    from densenet_from_scratch.command_line import main  # it imports this module

    main()
