"""The training loop: reproducible, resumable, and safe against what stops it half-way."""

import csv
import importlib
import json

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import Dataset, TensorDataset

from densenet_from_scratch import DenseNet, PlainNet, load_data
from densenet_from_scratch.data import make_loader
from densenet_from_scratch.train import SCHEDULES, History, Recipe, evaluate, train

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


def run(model: nn.Module, recipe: Recipe = RECIPE, train_set: Dataset = TRAIN_SET, **options):
    return train(model, train_set, EVAL_SET, recipe, device="cpu", progress=False, **options)


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
        self.reads = reads

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


def test_training_quantities_are_means_over_the_images():
    """With a learning rate next to nothing and no dropout, they are the first network's own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    recipe = Recipe(epochs=1, batch_size=6, learning_rate=1e-12)  # batches of 6, 6, 6 and 2
    history = run(model, recipe)
    expected = evaluate(model, TRAIN_SET, "cpu")
    assert (history.train_loss[0], history.train_accuracy[0]) == pytest.approx(expected)


def test_mixed_precision():
    history = run(small_net(), Recipe(epochs=2, batch_size=4, amp=True))
    assert len(history) == 2


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

    def scripted(model, loader, device):
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return 0.0, next(results)

    monkeypatch.setattr(train_module, "evaluate", scripted)
    run(small_net(), run_dir=tmp_path)
    state = torch.load(tmp_path / "best.pt")
    assert state["history"]["eval_accuracy"] == accuracies[:best]
    torch.testing.assert_close(state["model"], seen[best - 1], rtol=0, atol=0)


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

    def rising(model, loader, device):
        rising.epoch += 1
        return 0.0, rising.epoch / 10

    monkeypatch.setattr(train_module, "evaluate", rising)
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


@pytest.mark.parametrize("content", ["cut short", "not a checkpoint", "of something else"])
def test_a_damaged_checkpoint_is_refused(content, tmp_path):
    run(small_net(), Recipe(epochs=1, batch_size=4), run_dir=tmp_path)
    path = tmp_path / "last.pt"
    if content == "cut short":
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "not a checkpoint":
        path.write_text("hello")
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


def test_a_loss_that_is_no_number_stops_the_run():
    broken = TensorDataset(torch.full((8, 1, 4, 4), torch.nan), torch.zeros(8, dtype=torch.long))
    model = small_net()
    with pytest.raises(FloatingPointError, match="loss became nan; try a lower learning_rate"):
        run(model, train_set=broken)
    assert not model.training


# --- The progress bar ----------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar(progress, capsys):
    train(small_net(), TRAIN_SET, EVAL_SET, RECIPE, device="cpu", progress=progress, label="mine")
    out, err = capsys.readouterr()
    assert out == ""
    if progress:
        assert "mine:" in err and "/20" in err and "accuracy=" in err
    else:
        assert err == ""
