"""The training loop: reproducible, resumable, and safe against what stops it half-way."""

import csv
import importlib
import itertools
import json
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from densenet_from_scratch import DenseNet, PlainNet, load_data
from densenet_from_scratch.data import make_loader
from densenet_from_scratch.train import SCHEDULES, History, Recipe, checkpoints, evaluate, train

pytestmark = pytest.mark.filterwarnings("error")
train_module = importlib.import_module("densenet_from_scratch.train")

IMAGES = torch.randn(22, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(22) % 2
TRAIN_SET = TensorDataset(IMAGES[:20], LABELS[:20])  # five batches of four
EVAL_SET = TensorDataset(IMAGES[12:], LABELS[12:])
RECIPE = Recipe(epochs=4, batch_size=4)


def small_net() -> DenseNet:
    """A DenseNet with every source of chance: drawn weights and dropout."""
    torch.manual_seed(3)
    return DenseNet(
        growth_rate=2,
        block_config=(1, 1),
        num_init_features=4,
        drop_rate=0.3,
        num_classes=2,
        in_channels=1,
    )


def run(
    model: nn.Module,
    recipe: Recipe = RECIPE,
    train_set: Dataset = TRAIN_SET,
    eval_set: Dataset = EVAL_SET,
    **options,
) -> History:
    return train(model, train_set, eval_set, recipe, device="cpu", progress=False, **options)


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    """Equal to the bit, running statistics too."""
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def losses(history: History) -> tuple[list[float], ...]:
    """All of a history but the times."""
    return history.train_loss, history.train_accuracy, history.eval_loss, history.eval_accuracy


class Stopping(Dataset):
    """A data set that somebody stops (Ctrl-C) when it is read the n-th time."""

    targets = LABELS[:20]

    def __init__(self, reads: int) -> None:
        self.reads = reads + 8  # of its first and last image, before training

    def __len__(self) -> int:
        return len(TRAIN_SET)

    def __getitem__(self, index: int):
        self.reads -= 1
        if self.reads < 0:
            raise KeyboardInterrupt
        return TRAIN_SET[index]


# --- Learning ------------------------------------------------------------------------------------


def test_it_learns_the_digits():
    data = load_data()
    model = PlainNet(3)
    before, _ = evaluate(model, data.test, "cpu")
    history = train(model, data.train, data.test, Recipe(epochs=4), device="cpu", progress=False)
    assert len(history) == 4 and not history.interrupted
    assert history.train_loss[0] > history.train_loss[-1]
    assert history.eval_loss[-1] < before / 5
    assert history.eval_accuracy[-1] > 0.9
    assert all(seconds > 0 for seconds in history.seconds)
    assert (history.eval_loss[-1], history.eval_accuracy[-1]) == evaluate(model, data.test, "cpu")
    assert not model.training


def test_evaluate_counts_and_averages_over_all_images():
    """Two batches of unequal size, by hand; dropout and batch statistics stay out of it."""
    model = small_net()
    loss, accuracy = evaluate(model, make_loader(EVAL_SET, batch_size=7), "cpu")
    assert not model.training
    logits = model(IMAGES[12:])
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, LABELS[12:]).item())
    assert accuracy == (logits.argmax(1) == LABELS[12:]).float().mean().item()
    assert evaluate(model, EVAL_SET, "cpu") == pytest.approx((loss, accuracy))
    right = TensorDataset(IMAGES[12:], logits.argmax(1))
    assert evaluate(model, right, "cpu")[1] == 1


def test_seconds_are_those_of_each_epoch(monkeypatch):
    """By a clock that strikes each time it is read: at the start and at the end of an epoch."""
    clock = itertools.count(100.0, 7.0)
    monkeypatch.setattr(train_module, "perf_counter", lambda: next(clock))
    assert run(small_net()).seconds == [7.0] * 4


def test_every_epoch_has_a_seed_of_its_own(monkeypatch):
    """Dropout and augmentation draw from PyTorch's generator, the order from the loader's own."""
    loaders = []

    def noting(*arguments, **options):
        loaders.append(make_loader(*arguments, **options))
        return loaders[-1]

    monkeypatch.setattr(train_module, "make_loader", noting)
    for epochs in (1, 3):
        loaders.clear()
        run(small_net(), Recipe(epochs=epochs, batch_size=4, seed=5))
        expected = 5 + 1_000_003 * (epochs - 1)
        assert torch.initial_seed() == loaders[0].generator.initial_seed() == expected


def test_training_quantities_are_means_over_the_images():
    """With a learning rate next to nothing and no dropout, they are the first network's own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    recipe = Recipe(epochs=1, batch_size=6, learning_rate=1e-12)  # batches of 6, 6, 6 and 2
    history = run(model, recipe)
    expected = evaluate(model, TRAIN_SET, "cpu")
    assert (history.train_loss[0], history.train_accuracy[0]) == pytest.approx(expected)


@pytest.mark.parametrize("amp", [False, True])
def test_mixed_precision_is_for_training_only(amp):
    """Convolutions run in bfloat16 in a training step; weights and evaluation stay in float32."""
    seen, model = {True: set(), False: set()}, small_net()
    model.stem.conv.register_forward_hook(
        lambda conv, _, maps: seen[torch.is_grad_enabled()].add(maps.dtype)
    )
    history = run(model, Recipe(epochs=2, batch_size=4, amp=amp))
    assert seen == {True: {torch.bfloat16 if amp else torch.float32}, False: {torch.float32}}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(history) == 2 and history.train_loss[1] < 2


@pytest.fixture
def steps(monkeypatch) -> list[tuple[float, float]]:
    """The learning rate and the momentum of every step that is taken."""
    taken = []

    class Recording(SGD):
        def step(self, closure=None):
            taken.append((self.param_groups[0]["lr"], self.param_groups[0]["momentum"]))
            return super().step(closure)

    monkeypatch.setattr(train_module, "SGD", Recording)
    return taken


@pytest.mark.parametrize(
    "epochs, divisors",
    [(8, [1, 1, 1, 1, 10, 10, 100, 100]), (3, [1, 1, 10]), (2, [1, 10]), (1, [1])],
)
def test_step_schedule(epochs, divisors, steps):
    """Divided by 10 after half and after three quarters of the epochs."""
    run(small_net(), Recipe(epochs=epochs, batch_size=4, learning_rate=0.2, schedule="step"))
    expected = [0.2 / divisor for divisor in divisors for _ in range(5)]
    assert [rate for rate, _ in steps] == pytest.approx(expected)


def test_one_cycle_schedule(steps):
    """Up to the given rate, once, and down to next to nothing."""
    run(small_net(), Recipe(epochs=4, batch_size=4, learning_rate=0.2))
    rates = [rate for rate, _ in steps]
    assert len(rates) == 20
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(0.2) and 2 < peak < 10
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] < 0.02 and rates[-1] < 0.0001


def test_constant_schedule(steps):
    run(small_net(), Recipe(epochs=2, batch_size=4, learning_rate=0.2, schedule="constant"))
    assert {rate for rate, _ in steps} == {0.2}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_momentum_stays_as_the_recipe_says(schedule, steps):
    run(small_net(), Recipe(epochs=2, batch_size=4, momentum=0.7, schedule=schedule))
    assert {momentum for _, momentum in steps} == {0.7}


def test_the_papers_recipe_reaches_the_optimiser(monkeypatch):
    made = []
    monkeypatch.setattr(train_module, "SGD", lambda *a, **k: made.append(SGD(*a, **k)) or made[0])
    run(small_net(), Recipe(epochs=1, weight_decay=1e-4, momentum=0.8, schedule="constant"))
    settings = made[0].defaults
    assert [settings[name] for name in ("lr", "momentum", "nesterov", "weight_decay")] == [
        0.1,
        0.8,
        True,
        1e-4,
    ]


class Noted(Dataset):
    """A data set that notes in which order it is read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(TRAIN_SET)

    def __getitem__(self, index: int):
        self.read.append(index)
        return TRAIN_SET[index]


def test_every_epoch_reads_every_image_once_in_an_order_of_its_own():
    images = Noted()
    run(small_net(), Recipe(epochs=3, batch_size=4), images)
    epochs = [images.read[-60:-40], images.read[-40:-20], images.read[-20:]]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(20)]}) == 4
    assert images.read[:-60] == [0, 1], "no more than two are tried out"


def test_a_recipe_is_for_the_digits_unless_told():
    settings = (8, 64, 0.1, 0.9, True, 0.0, "one-cycle", 0, False)
    assert Recipe() == Recipe(*settings)
    noted = Noted()
    assert len(train(small_net(), noted, EVAL_SET, device="cpu", progress=False)) == 8
    assert len(noted.read) == 2 + 8 * 20
    assert Recipe(momentum=0, nesterov=False).momentum == 0
    for wrong in (1, -0.1):
        with pytest.raises(ValueError, match="momentum must be a number in"):
            Recipe(momentum=wrong)
    with pytest.raises(ValueError, match="nesterov must be False where momentum is 0, got True"):
        Recipe(momentum=0)


def test_the_device_is_found_unless_given():
    model = small_net()
    train(model, TRAIN_SET, EVAL_SET, Recipe(1, 4), progress=False)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    assert {parameter.device.type for parameter in model.parameters()} == {found}
    assert evaluate(model, EVAL_SET) == evaluate(model, EVAL_SET, found)


# --- The same again ------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights():
    first, second, other = small_net(), small_net(), small_net()
    histories = [run(first)]
    torch.rand(5)  # what other code draws in between makes no difference
    histories += [run(second), run(other, Recipe(epochs=4, batch_size=4, seed=1))]
    assert_same_weights(first, second)
    assert losses(histories[0]) == losses(histories[1])
    assert losses(histories[0]) != losses(histories[2])


def test_worker_processes_change_nothing():
    alone, helped = small_net(), small_net()
    recipe = Recipe(epochs=2, batch_size=4)
    run(alone, recipe)
    run(helped, recipe, num_workers=1)
    assert_same_weights(alone, helped)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_run_equals_one_that_never_stopped(schedule, tmp_path):
    recipe = Recipe(epochs=4, batch_size=4, schedule=schedule)
    whole, stopped = small_net(), small_net()
    expected = run(whole, recipe, run_dir=tmp_path / "whole")
    history = run(stopped, recipe, Stopping(reads=47), run_dir=tmp_path / "run")
    assert history.interrupted and len(history) == 2

    resumed = small_net()
    nn.init.ones_(resumed.stem.conv.weight)  # all that counts comes from the checkpoint
    torch.rand(7)
    history = run(resumed, recipe, run_dir=tmp_path / "run", resume=True)
    assert not history.interrupted
    assert losses(history) == losses(expected)
    assert_same_weights(resumed, whole)
    for name in ("last.pt", "best.pt"):
        states = [torch.load(tmp_path / folder / name) for folder in ("whole", "run")]
        for state in states:
            state["history"].pop("seconds")
        assert states[0]["history"] == states[1]["history"]
        torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=0, atol=0)


def test_resuming_a_finished_run_trains_no_further(tmp_path):
    model = small_net()
    run(model, run_dir=tmp_path)
    again = small_net()
    assert len(run(again, run_dir=tmp_path, resume=True)) == 4
    assert_same_weights(again, model)


# --- Files ---------------------------------------------------------------------------------------


def test_the_run_folder_holds_the_history_and_both_checkpoints(tmp_path):
    model = small_net()
    history = run(model, run_dir=tmp_path / "new" / "run")
    folder = tmp_path / "new" / "run"
    assert {path.name for path in folder.iterdir()} == {
        "last.pt",
        "best.pt",
        "history.json",
        "history.csv",
    }
    assert History(**json.loads((folder / "history.json").read_text())) == history
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for name in ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy", "seconds"):
        assert [float(row[name]) for row in rows] == getattr(history, name)

    last = small_net()
    last.load_state_dict(torch.load(folder / "last.pt", weights_only=True)["model"])
    assert_same_weights(last, model)


@pytest.mark.parametrize(
    "accuracies, best", [([0.2, 0.9, 0.5, 0.8], 2), ([0.2, 0.9, 0.9, 0.8], 3), ([0.9, 0, 0, 0], 1)]
)
def test_the_best_checkpoint_is_the_best(accuracies, best, tmp_path, monkeypatch):
    """The highest accuracy counts; of equal ones, the last."""
    seen, results = [], iter(accuracies)

    def scripted(model, loader, device, name):
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return 0.0, next(results)

    monkeypatch.setattr(train_module, "_evaluate", scripted)
    run(small_net(), run_dir=tmp_path)
    state = torch.load(tmp_path / "best.pt")
    assert state["history"]["eval_accuracy"] == accuracies[:best]
    torch.testing.assert_close(state["model"], seen[best - 1], rtol=0, atol=0)


def test_a_history_makes_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    History([1.0], [0.5], [2.0], [0.25], [3.0]).save("~/new/deep/history.csv")
    text = (tmp_path / "new/deep/history.csv").read_text()
    columns = "epoch,train_loss,train_accuracy,eval_loss,eval_accuracy,seconds"
    assert text.splitlines() == [columns, "1,1.0,0.5,2.0,0.25,3.0"]


def test_a_run_folder_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run(small_net(), Recipe(epochs=1, batch_size=4), run_dir="~/run")
    assert (tmp_path / "home/run/last.pt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "history.json", "history.csv"])
def test_a_run_is_not_overwritten(name, tmp_path):
    (tmp_path / name).write_text("precious")
    model = small_net()
    with pytest.raises(FileExistsError) as caught:
        run(model, run_dir=tmp_path)
    for part in ("run_dir", str(tmp_path), name, "last.pt", "resume=True", "another folder"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
    assert_same_weights(model, small_net())


@pytest.mark.parametrize(
    "place, why",
    [
        ("a file", "File exists"),
        ("a file/run", "Not a directory"),
        ("x" * 300, "name too long"),
        ("nul\0", "null"),
        ("closed/new/run", "not be|denied|not permitted"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_noticed_first(place, why, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("mine")
    (tmp_path / "closed").mkdir()
    if place.startswith("closed"):  # root may write everywhere, so permissions are no test

        def refuse(*arguments, **options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(checkpoints.tempfile, "TemporaryFile", refuse)
    model = small_net()
    with pytest.raises(ValueError, match="run_dir must be a folder to write to, got") as caught:
        run(model, run_dir=f"{tmp_path}/{place}")
    assert re.search(why, str(caught.value)) and "\n" not in str(caught.value)
    assert_same_weights(model, small_net())
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["a file", "closed"]


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="train_set must"):
        run(small_net(), train_set=EVAL_SET.tensors[0], run_dir=tmp_path / "new/run")
    with pytest.raises(ValueError, match="train_set must suit the model"):
        broken = TensorDataset(IMAGES[:, 0], LABELS)
        run(small_net(), train_set=broken, run_dir=tmp_path / "new/run")
    assert not list(tmp_path.iterdir())


def test_history_is_saved_as_json_or_csv_only(tmp_path):
    with pytest.raises(ValueError, match=r"suffix must be one of '.json', '.csv', got '.txt'"):
        History().save(tmp_path / "history.txt")
    assert not list(tmp_path.iterdir())


# --- What stops it half-way ----------------------------------------------------------------------


@pytest.mark.parametrize("reads, finished", [(3, 0), (33, 1)])
def test_an_interrupted_run_keeps_what_it_has(reads, finished, tmp_path, capsys):
    model = small_net()
    start = small_net().state_dict()
    history = run(model, train_set=Stopping(reads), run_dir=tmp_path, label="mine")
    assert history.interrupted
    assert len(history) == len(history.seconds) == finished
    assert f"mine: stopped after {finished} of 4 epochs" in capsys.readouterr().out
    assert not model.training
    evaluate(model, EVAL_SET, "cpu")
    changed = any(not torch.equal(start[key], value) for key, value in model.state_dict().items())
    assert changed == (reads > 4)
    assert (tmp_path / "last.pt").exists() == (finished > 0)


def fill_the_disk_after(saves: int, monkeypatch, error: type[BaseException]) -> None:
    """Make the save after the first few write half a file and fail."""
    save, left = torch.save, iter(range(saves))

    def failing(state, path):
        if next(left, None) is None:
            path.write_bytes(b"half a file")
            raise error("no space left on device")
        save(state, path)

    monkeypatch.setattr(train_module.torch, "save", failing)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("saves", range(8))
def test_a_save_that_fails_costs_no_more_than_an_epoch(saves, error, tmp_path, monkeypatch):
    """Whichever save fails, the files are whole, and a resumed run ends like one that never did.

    The accuracy rises, so that each epoch saves twice: best.pt and last.pt.
    """

    def rising(model, loader, device, name):
        rising.epoch += 1
        return 0.0, rising.epoch / 10

    monkeypatch.setattr(train_module, "_evaluate", rising)
    rising.epoch = 0
    whole, broken, resumed = small_net(), small_net(), small_net()
    run(whole, run_dir=tmp_path / "whole")

    rising.epoch, folder = 0, tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_the_disk_after(saves, patch, error)
        if error is OSError:
            with pytest.raises(OSError, match="no space left"):
                run(broken, run_dir=folder)
        else:
            assert run(broken, run_dir=folder).interrupted
    finished = saves // 2
    assert not list(folder.glob("*.part"))
    if finished == 0:
        assert not (folder / "last.pt").exists()
        with pytest.raises(FileNotFoundError, match=r"run_dir must hold last\.pt"):
            run(resumed, run_dir=folder, resume=True)
        return
    assert len(torch.load(folder / "last.pt")["history"]["train_loss"]) == finished

    rising.epoch = finished
    run(resumed, run_dir=folder, resume=True)
    assert_same_weights(resumed, whole)
    for name in ("last.pt", "best.pt"):
        models = [torch.load(tmp_path / f / name)["model"] for f in ("whole", "run")]
        torch.testing.assert_close(*models, rtol=0, atol=0)


def test_resume_needs_a_folder():
    with pytest.raises(ValueError, match="run_dir must be given to resume a run, got None"):
        run(small_net(), resume=True)


@pytest.mark.parametrize(
    "content", ["cut short", "not a checkpoint", "of something else", "other history", "objects"]
)
def test_a_damaged_checkpoint_is_refused(content, tmp_path):
    run(small_net(), Recipe(epochs=1, batch_size=4), run_dir=tmp_path)
    path = tmp_path / "last.pt"
    if content == "cut short":
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "not a checkpoint":
        path.write_text("hello")
    elif content == "other history":
        torch.save(torch.load(path) | {"history": {"loss": [1.0]}}, path)
    elif content == "objects":  # whose loading could run anything
        torch.save(torch.load(path) | {"more": Pairs()}, path)
    else:
        torch.save({"weights": torch.zeros(2)}, path)
    model = small_net()
    with pytest.raises(ValueError, match=r"run_dir must hold a last\.pt that is whole") as caught:
        run(model, Recipe(epochs=1, batch_size=4), run_dir=tmp_path, resume=True)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert_same_weights(model, small_net())


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    run(small_net(), run_dir=tmp_path)
    other = Recipe(epochs=4, batch_size=5, seed=1)
    with pytest.raises(ValueError, match=r"it differs in batch_size, seed$"):
        run(small_net(), other, run_dir=tmp_path, resume=True)


def plain_classifier(*between: nn.Module, outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), *between, nn.Linear(4, outputs))


def frozen_stem() -> DenseNet:
    model = small_net()
    model.stem.requires_grad_(False)
    return model


class Swapped(nn.Module):
    """Two linear layers, registered in the order asked for."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(16, 16))
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(self.second(x.flatten(1))))


MORE, FEWER = TensorDataset(IMAGES, LABELS), TensorDataset(IMAGES[:17], LABELS[:17])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "first, second, changes, message",
    [
        (small_net, small_net, {"train_set": MORE}, r"with \[20, 10\] images, got \[22, 10\]$"),
        (small_net, small_net, {"train_set": FEWER}, r"train_set and eval_set must be those of"),
        (small_net, small_net, {"eval_set": MORE}, r"with \[20, 10\] images, got \[20, 22\]$"),
        (
            small_net,
            lambda: PlainNet(2, num_classes=2),
            {},
            r"model must .*differs in stem\.weight$",
        ),
        (
            lambda: PlainNet(2, num_classes=2),
            lambda: PlainNet(3, num_classes=2),
            {},
            r"model must be the network of .*last\.pt; it differs in layers\.2\.norm\.weight$",
        ),
        (
            lambda: PlainNet(3, num_classes=2),
            lambda: PlainNet(2, num_classes=2),
            {},
            r"it differs in the order or number of its parts$",
        ),
        (
            lambda: Swapped("first", "second"),
            lambda: Swapped("second", "first"),
            {},
            r"it differs in the order or number of its parts$",
        ),
        (plain_classifier, lambda: plain_classifier(outputs=3), {}, r"it differs in 2\.weight$"),
        (frozen_stem, small_net, {}, r"it differs in stem\.conv\.weight$"),
    ],
    ids="more,fewer,other evaluation,other,deeper,shallower,order,classes,frozen".split(","),
)
def test_a_checkpoint_of_something_else_is_refused_whole(
    first, second, changes, message, schedule, tmp_path
):
    recipe = Recipe(epochs=3, batch_size=4, schedule=schedule)
    run(first(), recipe, Stopping(reads=47), run_dir=tmp_path)
    torch.manual_seed(5)
    model = second()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    sets = {"train_set": TRAIN_SET, "eval_set": EVAL_SET} | changes
    with pytest.raises(ValueError, match=message) as caught:
        run(model, recipe, *sets.values(), run_dir=tmp_path, resume=True)
    assert "last.pt" in str(caught.value) and "\n" not in str(caught.value)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


class Flipped(Dataset):
    """The training images, half of them mirrored at random."""

    def __len__(self) -> int:
        return len(TRAIN_SET)

    def __getitem__(self, index: int):
        image, label = TRAIN_SET[index]
        return (image.flip(-1) if torch.rand(()) < 0.5 else image), label


def other_rate(name: str) -> DenseNet:
    model = small_net()
    part, _, setting = name.rpartition(".")
    setattr(model.get_submodule(part), setting, 0.25)
    return model


OTHER_LABELS = TensorDataset(IMAGES[:20], 1 - LABELS[:20])
OTHER_IMAGES = TensorDataset(torch.cat((IMAGES[:19], IMAGES[:1])), LABELS[:20])


@pytest.mark.parametrize(
    "model, changes, message",
    [
        (
            other_rate("blocks.1.layers.0.drop_rate"),
            {},
            r"1\.layers\.0\.drop_rate = 0\.3, got 0\.25$",
        ),
        (
            other_rate("norm.eps"),
            {},
            r"model must be .*last\.pt, with norm\.eps = 1e-05, got 0\.25$",
        ),
        (small_net(), {"train_set": OTHER_LABELS}, r"train_set must be .* with other labels$"),
        (small_net(), {"train_set": OTHER_IMAGES}, r"train_set must .* other first or last image$"),
        (
            small_net(),
            {"eval_set": Subset(EVAL_SET, range(9, -1, -1))},
            r"eval_set must be that of",
        ),
    ],
    ids="drop rate,eps,labels,image,order".split(","),
)
def test_other_settings_or_images_of_the_same_number_are_refused(model, changes, message, tmp_path):
    run(small_net(), Recipe(epochs=1, batch_size=4), run_dir=tmp_path)
    sets = {"train_set": TRAIN_SET, "eval_set": EVAL_SET} | changes
    with pytest.raises(ValueError, match=message) as caught:
        run(model, Recipe(epochs=1, batch_size=4), *sets.values(), run_dir=tmp_path, resume=True)
    assert "last.pt" in str(caught.value) and "\n" not in str(caught.value)


def test_images_that_differ_at_each_reading_are_not_compared(tmp_path):
    """Nor does looking at them draw a random number."""
    for seed in range(8):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        assert checkpoints.fingerprint(Flipped()) == {"labels": None, "images": None}
        assert torch.equal(torch.get_rng_state(), state)
    recipe = Recipe(epochs=1, batch_size=4)
    run(small_net(), recipe, Flipped(), run_dir=tmp_path)
    run(small_net(), recipe, Flipped(), run_dir=tmp_path, resume=True)


def test_images_that_differ_by_rounding_are_the_same(tmp_path):
    """Another machine, with the same data, may go on."""
    recipe = Recipe(epochs=1, batch_size=4)
    run(small_net(), recipe, run_dir=tmp_path)
    rounded = TensorDataset(IMAGES[:20] * (1 + 1e-6), LABELS[:20].int())
    run(small_net(), recipe, rounded, run_dir=tmp_path, resume=True)


def test_a_checkpoint_without_settings_and_data_can_be_resumed(tmp_path):
    recipe = Recipe(epochs=1, batch_size=4)
    run(small_net(), recipe, run_dir=tmp_path)
    state = torch.load(tmp_path / "last.pt")
    del state["settings"], state["data"]
    torch.save(state, tmp_path / "last.pt")
    run(other_rate("norm.eps"), recipe, OTHER_LABELS, run_dir=tmp_path, resume=True)


@pytest.mark.parametrize("efficient", [True, "checkpoint"])
def test_a_run_can_go_on_in_another_way_of_running(efficient, tmp_path):
    run(small_net(), Recipe(epochs=2, batch_size=4), run_dir=tmp_path)
    model = DenseNet(2, (1, 1), 0.5, 4, 4, 0.3, 2, in_channels=1, efficient=efficient)
    run(model, Recipe(epochs=2, batch_size=4), run_dir=tmp_path, resume=True)
    torch.testing.assert_close(
        model.state_dict(), torch.load(tmp_path / "last.pt")["model"], rtol=0, atol=0
    )


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    broken = TensorDataset(torch.full((8, 1, 4, 4), torch.nan), torch.zeros(8, dtype=torch.long))
    model = small_net()
    message = "loss became nan; try a lower learning_rate, or look for NaN in train_set"
    with pytest.raises(FloatingPointError, match=message):
        run(model, train_set=broken)
    assert not model.training
    with pytest.raises(FloatingPointError, match=r"became nan; .* look for NaN in eval_set"):
        run(model, eval_set=broken, run_dir=tmp_path)
    assert not list(tmp_path.iterdir()), "no checkpoint of a broken network"


# --- What does not fit ---------------------------------------------------------------------------


class Pairs(Dataset):
    """A data set that knows nothing but its length and its pairs."""

    def __init__(self, *pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int):
        return self.pairs[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(IMAGES[0], 0)])


class Returns(nn.Module):
    """A network that returns something else than logits."""

    def __init__(self, make) -> None:
        super().__init__()
        self.weight, self.make = nn.Parameter(torch.ones(1)), make

    def forward(self, x: torch.Tensor):
        return self.make(x * self.weight)


def labelled(labels: torch.Tensor, images: torch.Tensor = IMAGES) -> TensorDataset:
    return TensorDataset(images, labels)


LABEL = "must label each image with one integer from 0 to 1, as the model has 2 classes, got"
UNFIT = {
    "label too high": (labelled(LABELS + (torch.arange(22) == 21)), f"{LABEL} 2$"),
    "label below 0": (labelled(LABELS - 1), f"{LABEL} -1$"),
    "label that PyTorch skips": (labelled(torch.where(LABELS == 1, -100, 0)), f"{LABEL} -100$"),
    "part of such": (Subset(labelled(LABELS * 7), [0, 2, 1]), f"{LABEL} 7$"),
    "float labels": (labelled(LABELS.float()), LABEL + r" a batch .*\(22|.*torch\.float32$"),
    "one-hot": (labelled(nn.functional.one_hot(LABELS)), LABEL + r" .*shape \(\d, 2\) .*int64$"),
    "labels in a column": (labelled(LABELS[:, None]), LABEL + r" .*shape \(\d, 1\)"),
    "channels": (
        labelled(LABELS, IMAGES.expand(-1, 3, -1, -1)),
        r"must suit .*got \(\d, 3, 4, 4\)",
    ),
    "no channel": (labelled(LABELS, IMAGES[:, 0]), r"must suit the model, .*\(\d, 4, 4\)"),
    "too small": (labelled(LABELS, IMAGES[..., :1, :1]), "must suit the model.* 2 pixels high"),
    "bytes": (labelled(LABELS, IMAGES.byte()), r"must suit the model.*torch\.uint8"),
    "float64": (labelled(LABELS, IMAGES.double()), r"must suit the model.*torch\.float64"),
    "empty": (TensorDataset(IMAGES[:0], LABELS[:0]), "must hold at least one image, got 0"),
    "loader": (make_loader(TRAIN_SET), "must be a data set, .*got DataLoader"),
    "stream": (Stream(), "must be a data set, .*got Stream"),
    "load_data": (load_data(), "must be a data set, .*got Data"),
    "tensor": (IMAGES, "must be a data set, .*got Tensor"),
    "triples": (Pairs(*[(IMAGES[0], 0, 1)] * 4), "must hold pairs of image and class number, .*3$"),
    "no pairs": (
        Pairs(*[IMAGES[0]] * 4),
        "must hold pairs of image and class number, got a Tensor",
    ),
    "no tensor": (
        Pairs(*[(object(), 0)] * 4),
        "must hold pairs of image, a tensor, and class number",
    ),
}


@pytest.mark.parametrize("name", ["train_set", "eval_set"])
@pytest.mark.parametrize("dataset, message", UNFIT.values(), ids=UNFIT)
def test_a_data_set_that_does_not_fit_is_refused_first(dataset, message, name, tmp_path):
    model = small_net()
    model.stem.eval()
    modes = [part.training for part in model.modules()]
    sets = {"train_set": TRAIN_SET, "eval_set": EVAL_SET} | {name: dataset}
    with pytest.raises(ValueError, match=f"^{name} {message}") as caught:
        run(model, RECIPE, *sets.values(), run_dir=tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert_same_weights(model, small_net())  # with running statistics and their counters
    assert [part.training for part in model.modules()] == modes
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda x: x, "model must be a Module, got function"),
        (nn.Flatten(), "model must have a parameter that requires a gradient, got none"),
        (small_net().requires_grad_(False), "model must have a parameter that requires a gradient"),
        (
            Returns(lambda x: (x.flatten(1),)),
            r"model must return logits .*\(N, classes\), got tuple",
        ),
        (Returns(lambda x: x), r"model must return logits .*, got \(\d, 1, 4, 4\)"),
        (small_net().double(), r"train_set must suit the model, .*torch\.float32: .*"),
    ],
    ids=["function", "no parameter", "frozen", "tuple", "maps", "float64"],
)
def test_a_model_that_cannot_be_trained_is_refused_first(model, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        run(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("images, batch_size", [(21, 4), (21, 5), (1, 4), (4, 1)])
def test_a_batch_of_one_image_that_cannot_be_normalised_is_refused_first(images, batch_size):
    """Where maps are 1×1, a batch of one has one number a channel, and BatchNorm refuses it."""
    model = DenseNet(2, (1, 1, 1), num_init_features=4, num_classes=2, in_channels=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dataset, recipe = TensorDataset(IMAGES[:images], LABELS[:images]), Recipe(1, batch_size)
    with pytest.raises(ValueError, match=r"^train_set must suit .*batch_size must not leave one"):
        run(model, recipe, dataset)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert len(run(model, Recipe(1, batch_size + 2), TensorDataset(IMAGES[:20], LABELS[:20]))) == 1
    assert len(run(small_net(), recipe, dataset)) == 1, "larger maps can be"


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_labels_of_every_integer_type_train_alike(dtype):
    first, second = small_net(), small_net()
    run(first)
    run(second, train_set=TensorDataset(IMAGES[:20], LABELS[:20].to(dtype)))
    assert_same_weights(first, second)


def test_a_wrong_label_that_only_reading_shows_is_named_when_it_is_read():
    pairs = [(IMAGES[n], int(n == 9) * 5) for n in range(20)]
    with pytest.raises(ValueError, match=f"^train_set {LABEL} 5$"):
        run(small_net(), train_set=Pairs(*pairs))
    with pytest.raises(ValueError, match=f"^data {LABEL} 5$"):
        evaluate(small_net(), Pairs(*pairs), "cpu")


def test_an_error_names_the_argument_that_was_given():
    """What evaluates is one function, and its callers call the images differently."""
    pairs = Pairs(*[(IMAGES[n], int(n == 9) * 5) for n in range(20)])
    with pytest.raises(ValueError, match=f"^eval_set {LABEL} 5$"):
        run(small_net(), eval_set=pairs)
    for nothing, message in (([], "hold at least one image, got 0"), (3, "be a data set, .* int$")):
        with pytest.raises(ValueError, match=f"^data must {message}"):
            evaluate(small_net(), nothing, "cpu")


def test_one_epoch_is_called_one(capsys):
    run(small_net(), Recipe(epochs=1, batch_size=4), train_set=Stopping(3), label="mine")
    assert "mine: stopped after 0 of 1 epoch\n" in capsys.readouterr().out


def test_evaluating_nothing():
    for loader in (DataLoader([]), DataLoader(EVAL_SET, batch_size=50, drop_last=True)):
        with pytest.raises(ValueError, match="data must hold at least one image, got 0"):
            evaluate(small_net(), loader, "cpu")


def test_trying_out_leaves_no_trace_in_the_training():
    """With a learning rate next to nothing the statistics are those of the batches alone."""
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=None), nn.Flatten(), nn.Linear(16, 2))
    history = run(model, Recipe(epochs=2, batch_size=4, learning_rate=1e-12))
    assert int(model[0].num_batches_tracked) == 10
    torch.testing.assert_close(model[0].running_mean, IMAGES[:20].mean()[None])
    assert not history.interrupted


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resume": "no"}, "resume must be one of False, True, got 'no'"),
        ({"run_dir": ""}, "run_dir must be a path, got ''"),
        ({"run_dir": 3}, "run_dir must be a path, got 3"),
        ({"recipe": {"epochs": 2}}, "recipe must be a Recipe, got dict"),
        ({"num_workers": -1}, "num_workers must be an integer of at least 0, got -1"),
    ],
)
def test_an_argument_of_another_kind(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        run(small_net(), **options)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"amp": "no"}, "amp must be one of False, True, got 'no'"),
        ({"nesterov": 1}, "nesterov must be one of False, True, got 1"),
        ({"seed": 2**63}, r"seed must be an integer below 2\*\*63, got 9223372036854775808"),
    ],
)
def test_a_recipe_of_another_kind(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Recipe(**settings)


def test_the_highest_seed_lasts_for_many_epochs():
    assert len(run(small_net(), Recipe(3, 64, seed=2**63 - 1))) == 3


def test_a_recipe_of_numpys_numbers_is_the_same_recipe(tmp_path):
    recipe = Recipe(
        epochs=np.int64(2), batch_size=np.int32(4), seed=np.uint8(3), learning_rate=np.float64(0.1)
    )
    same = Recipe(epochs=2, batch_size=4, seed=3)
    assert recipe == same and str(recipe) == str(same)
    run(small_net(), recipe, run_dir=tmp_path)
    assert len(run(small_net(), same, run_dir=tmp_path, resume=True)) == 2


# --- The progress bar ----------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar(progress, capsys):
    train(small_net(), TRAIN_SET, EVAL_SET, RECIPE, device="cpu", progress=progress, label="mine")
    out, err = capsys.readouterr()
    assert out == ""
    if progress:
        assert all(part in err for part in ("mine:", "/20", "loss=", "accuracy="))
    else:
        assert err == ""


def test_the_bar_of_a_resumed_run_starts_where_it_stopped(tmp_path, capsys):
    run(small_net(), RECIPE, Stopping(reads=47), run_dir=tmp_path)
    capsys.readouterr()
    options = {"device": "cpu", "run_dir": tmp_path, "resume": True}
    train(small_net(), TRAIN_SET, EVAL_SET, RECIPE, **options)
    assert " 10/20 " in capsys.readouterr().err.split("\r")[1]
