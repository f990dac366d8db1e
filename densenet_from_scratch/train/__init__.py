"""One training loop for every network of the course (chapters 1 and 8)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, OneCycleLR
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm.auto import tqdm

from densenet_from_scratch.arguments import (
    check_choice,
    check_count,
    check_device,
    check_fraction,
    check_number,
)
from densenet_from_scratch.data import (
    as_path,
    check_dataset,
    check_seed,
    labels_without_reading,
    make_loader,
)
from densenet_from_scratch.train.checkpoints import (
    History,
    check_run_dir,
    fingerprint,
    read_checkpoint,
    save_run,
    settings_of,
    signature,
)

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
        checked = {
            "epochs": check_count("epochs", self.epochs),
            "batch_size": check_count("batch_size", self.batch_size),
            "momentum": check_fraction("momentum", self.momentum, zero=True, one=False),
            "schedule": check_choice("schedule", self.schedule, SCHEDULES),
            "seed": check_seed(self.seed),
            "learning_rate": check_number("learning_rate", self.learning_rate),
            "weight_decay": check_number("weight_decay", self.weight_decay, zero=True),
            "nesterov": check_choice("nesterov", self.nesterov, (False, True)),
            "amp": check_choice("amp", self.amp, (False, True)),
        }
        for name, value in checked.items():  # NumPy's numbers become Python's, as in checkpoints
            object.__setattr__(self, name, value)
        if self.nesterov and self.momentum == 0:
            raise ValueError(f"nesterov must be False where momentum is 0, got {self.nesterov!r}")


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

    A few images of both sets are tried first, so that what does not fit is said before anything
    is changed.

    Args:
        model: maps images (N, C, H, W) to logits (N, classes).
        train_set: pairs of image and class number to learn from.
        eval_set: pairs to evaluate after each epoch. If you choose by its accuracy, as the best
            checkpoint does, it must not be the test set: use a part of the training set.
        recipe: the settings; ``Recipe()`` if not given.
        device: ``"auto"`` uses a GPU when there is one.
        run_dir: a folder for ``last.pt``, ``best.pt`` (highest evaluation accuracy so far),
            ``history.json`` and ``history.csv``, written after each epoch. A run that is there
            already is not overwritten. ``torch.load(path)["model"]`` of a checkpoint is what
            ``model.load_state_dict`` takes.
        resume: go on from ``last.pt`` in ``run_dir``, as if the run had never stopped. Network,
            recipe and data must be as they were. Of the data are compared: how many images there
            are, all labels where they can be had without the images, and the first and the last
            image where they are not augmented at random.
        num_workers: processes that prepare images.
        progress: show the bar.
        label: what stands before the bar.

    Raises:
        ValueError: an argument is out of range, ``device`` does not exist here, the model and the
            images do not fit, ``run_dir`` cannot be written to, ``resume`` without ``run_dir``, or
            the checkpoint belongs to another recipe, to a network with other tensors or settings,
            or to other data.
        FileExistsError: ``run_dir`` holds a run, and ``resume`` is false.
        FileNotFoundError: ``resume`` and no ``last.pt`` in ``run_dir``.
        FloatingPointError: the loss became infinite or NaN.
    """
    recipe = Recipe() if recipe is None else recipe
    _check_kinds(model, recipe)
    device = check_device(device)
    sizes = [
        check_dataset(name, s) for name, s in (("train_set", train_set), ("eval_set", eval_set))
    ]
    loader = make_loader(
        train_set, recipe.batch_size, shuffle=True, seed=recipe.seed, num_workers=num_workers
    )
    eval_loader = make_loader(eval_set, batch_size=256, num_workers=num_workers)
    if check_choice("resume", resume, (False, True)) and run_dir is None:
        raise ValueError("run_dir must be given to resume a run, got None")
    if run_dir is not None:
        run_dir = as_path("run_dir", run_dir)
        check_run_dir(run_dir, resume)

    model.to(device)
    last = sizes[0] % recipe.batch_size or recipe.batch_size  # images of the last batch
    with _left_as_it_is(model):
        _try_out(model.train(), train_set, "train_set", min(last, 2), device)
        _try_out(model.eval(), eval_set, "eval_set", 1, device)
    run: dict[str, Any] = {}
    if run_dir is not None:
        run = {"recipe": asdict(recipe), "images": sizes, "network": signature(model)}
        run["settings"] = settings_of(model)
        run["data"] = {"train_set": fingerprint(train_set), "eval_set": fingerprint(eval_set)}
    saved = read_checkpoint(run_dir, run, device) if run_dir is not None and resume else None
    optimizer = _make_optimizer(model, recipe)
    scheduler = _make_scheduler(optimizer, recipe, steps_per_epoch=len(loader))
    history = History()
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        history = History(**saved["history"])

    bar = _make_bar(label, recipe.epochs, len(history), len(loader), progress)
    try:
        for epoch in range(len(history), recipe.epochs):
            started = perf_counter()
            # Every epoch has a seed of its own, so a resumed run draws the same numbers.
            torch.manual_seed(recipe.seed + 1_000_003 * epoch)
            loader.generator.manual_seed(recipe.seed + 1_000_003 * epoch)
            train_loss, train_accuracy = _train_epoch(
                model, loader, optimizer, scheduler, recipe.amp, device, bar
            )
            eval_loss, eval_accuracy = _evaluate(model, eval_loader, device, "eval_set")
            _check_loss(eval_loss, "eval_set")
            seconds = perf_counter() - started
            history.add(train_loss, train_accuracy, eval_loss, eval_accuracy, seconds)
            bar.set_postfix(loss=f"{train_loss:.3f}", accuracy=f"{eval_accuracy:.3f}")
            if run_dir is not None:
                save_run(run_dir, model, optimizer, scheduler, run, history)
    except KeyboardInterrupt:
        history.interrupted = True
        plural = "s" * (recipe.epochs != 1)
        tqdm.write(f"{label}: stopped after {len(history)} of {recipe.epochs} epoch{plural}")
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

    Raises:
        ValueError: there is no image, or a label is no class number of the model.
    """
    device = check_device(device)
    if isinstance(data, DataLoader):
        return _evaluate(model.to(device), data, device, "data")
    check_dataset("data", data)
    return _evaluate(model.to(device), make_loader(data, batch_size=256), device, "data")


def _evaluate(
    model: nn.Module, loader: DataLoader, device: torch.device, name: str
) -> tuple[float, float]:
    model.eval()
    totals, count = _Totals(device), 0
    with torch.no_grad():
        for batch in loader:
            logits, labels = _apply(model, batch, name, device)
            totals.add(F.cross_entropy(logits, labels, reduction="sum"), 1, logits, labels)
            count += len(labels)
    if count == 0:
        raise ValueError(f"{name} must hold at least one image, got 0")
    loss, correct = totals.read()
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
    totals, count = _Totals(device), 0
    for batch in loader:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            logits, labels = _apply(model, batch, "train_set", device)
            loss = F.cross_entropy(logits, labels)
        if device.type == "cpu":  # at once; elsewhere at the epoch's end, for asking makes it wait
            _check_loss(loss.item(), "train_set")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not isinstance(scheduler, MultiStepLR):
            scheduler.step()
        totals.add(loss, len(labels), logits, labels)
        count += len(labels)
        bar.update()
    if isinstance(scheduler, MultiStepLR):
        scheduler.step()
    loss_sum, correct = totals.read()
    _check_loss(loss_sum, "train_set")
    return loss_sum / count, correct / count


class _Totals:
    """Sums over the images of an epoch, kept where they are computed, so that nothing waits."""

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64  # which MPS has not
        self.sums = torch.zeros(2, dtype=dtype, device=device)

    def add(self, loss: Tensor, images: int, logits: Tensor, labels: Tensor) -> None:
        """Add a mean loss over so many images, and how many of them are right."""
        correct = (logits.argmax(dim=1) == labels).sum()
        self.sums += torch.stack((loss.detach().to(self.sums) * images, correct.to(self.sums)))

    def read(self) -> tuple[float, int]:
        """Return the sum of the images' losses and how many were right."""
        loss, correct = self.sums.tolist()
        return loss, int(correct)


def _apply(
    model: Callable[[Tensor], Any], batch: Any, name: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the logits of a batch and its labels, both on the device, or say what is wrong."""
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        kind = f"{type(batch).__name__} of {len(batch)}"
        raise ValueError(f"{name} must hold pairs of image and class number, got a {kind}")
    images, labels = batch
    logits = model(images.to(device, non_blocking=True))
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model must return logits of shape (N, classes), got {given}")
    _check_labels(name, labels, logits.shape[1])
    return logits, labels.to(device, torch.int64, non_blocking=True)


def _check_labels(name: str, labels: Tensor, classes: int) -> None:
    if labels.dim() == 1 and not labels.is_floating_point():
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong) == 0:
            return
        given = str(int(wrong[0]))
    else:
        given = f"a batch of them of shape {tuple(labels.shape)} and type {labels.dtype}"
    raise ValueError(
        f"{name} must label each image with one integer from 0 to {classes - 1}, as the model has "
        f"{classes} classes, got {given}"
    )


def _check_loss(loss: float, name: str) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss}; try a lower learning_rate, or look for NaN in {name}"
        )


def _try_out(
    model: nn.Module, dataset: Dataset, name: str, count: int, device: torch.device
) -> None:
    """Run the first images of a data set, and look at all its labels if that is quick."""

    def run(images: Tensor) -> Any:
        try:
            return model(images)
        except Exception as error:
            alone = "; batch_size must not leave one image for a batch" if count == 1 else ""
            raise ValueError(
                f"{name} must suit the model, got an error with a batch of {count} of its images, "
                f"{tuple(images.shape)} of {images.dtype}: {_first_line(error)}"
                f"{alone if model.training else ''}"
            ) from error

    try:
        batch = default_collate([dataset[index] for index in range(count)])
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{name} must hold pairs of image, a tensor, and class number, got an error: "
            f"{_first_line(error)}"
        ) from error
    with torch.no_grad():
        logits, _ = _apply(run, batch, name, device)
    labels = labels_without_reading(dataset)
    if labels is not None:
        _check_labels(name, labels, logits.shape[1])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


@contextmanager
def _left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Put back the modes and the running statistics that trying out changes."""
    modes = {part: part.training for part in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _check_kinds(model: Any, recipe: Any) -> None:
    for name, value, kind in (("model", model, nn.Module), ("recipe", recipe, Recipe)):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model must have a parameter that requires a gradient, got none")


def _make_optimizer(model: nn.Module, recipe: Recipe) -> SGD:
    return SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def _make_bar(label: str, epochs: int, finished: int, steps: int, progress: bool) -> tqdm:
    return tqdm(
        total=epochs * steps,
        initial=finished * steps,
        desc=label,
        disable=not progress,
        leave=False,
        mininterval=1.0,  # seconds; a notebook gets several messages for each redraw
    )


def _make_scheduler(optimizer: SGD, recipe: Recipe, steps_per_epoch: int) -> LRScheduler:
    if recipe.schedule == "one-cycle":
        total_steps = recipe.epochs * steps_per_epoch
        return OneCycleLR(optimizer, recipe.learning_rate, total_steps, cycle_momentum=False)
    if recipe.schedule == "step":
        milestones = [math.ceil(recipe.epochs * share) for share in (0.5, 0.75)]
        return MultiStepLR(optimizer, milestones)
    return LambdaLR(optimizer, lambda step: 1.0)
