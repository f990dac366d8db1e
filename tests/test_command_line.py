"""``python -m densenet_from_scratch.train``: what it trains, prints and refuses."""

import json
import re
import subprocess
import sys

import pytest
import torch

from densenet_from_scratch import densenet_cifar, load_data
from densenet_from_scratch.data import Data, HeldImages
from densenet_from_scratch.train import History, Recipe
from densenet_from_scratch.train import __main__ as command_line
from densenet_from_scratch.train.__main__ import main, parse

SMALL = "--data digits --depth 10 --growth-rate 2 --epochs 1 --workers 0 --device cpu".split()


def test_the_defaults_are_the_papers():
    options = parse([])
    assert (options.data, options.depth, options.growth_rate) == ("cifar10", 100, 12)
    assert (options.compression, options.no_bottleneck) == (0.5, False)
    assert (options.epochs, options.batch_size, options.schedule) == (300, 64, "step")
    assert (options.learning_rate, options.weight_decay) == (0.1, 1e-4)
    assert (options.drop_after, options.init_mode) == ("convolution", "fan_out")


@pytest.fixture
def trained(monkeypatch) -> list[dict]:
    """What each call of ``train`` is given; nothing is trained."""
    calls = []

    def train(*arguments, **options):
        names = ("network", "train_set", "eval_set", "recipe")
        calls.append(dict(zip(names, arguments, strict=True)) | options)
        return History()

    monkeypatch.setattr(command_line, "train", train)
    return calls


@pytest.mark.parametrize("drop_after", [None, "layer", "convolution"])
@pytest.mark.parametrize("init_mode", [None, "fan_in", "fan_out"])
def test_dropout_and_first_weights_are_as_asked(drop_after, init_mode, trained):
    """By default those of the paper and its authors' code."""
    options = ["--drop-after", drop_after] if drop_after else []
    options += ["--init-mode", init_mode] if init_mode else []
    main([*SMALL, "--drop-rate", "0.4", *options])
    network = trained[0]["network"]
    torch.manual_seed(0)
    expected = densenet_cifar(
        10,
        2,
        drop_rate=0.4,
        in_channels=1,
        drop_after=drop_after or "convolution",
        init_mode=init_mode or "fan_out",
    )
    torch.testing.assert_close(network.state_dict(), expected.state_dict(), rtol=0, atol=0)
    outputs = []
    for model in (network, expected):
        torch.manual_seed(1)
        outputs.append(model.train()(torch.ones(8, 1, 8, 8)))
    assert torch.equal(*outputs)


def test_every_option_reaches_the_training(trained, tmp_path):
    command = "--data digits --depth 10 --growth-rate 3 --no-bottleneck --compression 1"
    command += " --drop-rate 0.1 --efficient shared --validation 0.25 --workers 3 --epochs 7"
    command += " --batch-size 50 --learning-rate 0.3 --weight-decay 0.02 --schedule constant"
    command += " --seed 4 --amp --device cpu --resume"
    main([*command.split(), "--run-dir", str(tmp_path)])
    [given] = trained
    expected = densenet_cifar(
        10, 3, False, 1, drop_rate=0.1, efficient="shared", in_channels=1, drop_after="convolution"
    )
    assert str(given["network"]) == str(expected)
    assert given["network"].blocks[1].layers[0].drop_rate == 0.1
    assert (len(given["eval_set"]), len(given["train_set"])) == (324, 973)
    assert given["recipe"] == Recipe(7, 50, 0.3, 0.9, True, 0.02, "constant", 4, True)
    names = ("device", "run_dir", "resume", "num_workers", "label")
    assert [given[name] for name in names] == ["cpu", str(tmp_path), True, 3, "digits"]


def test_without_options_it_is_the_papers_experiment(trained, monkeypatch):
    """C10: DenseNet-BC (L=100, k=12); dropout only without augmentation; evaluated on the test."""
    loaded = []

    def load(name, root, **options):
        loaded.append({"name": name, "root": root} | options)
        digits = load_data()
        return Data(name, digits.train, digits.test, digits.class_names, (3, 32, 32))

    monkeypatch.setattr(command_line, "load_data", load)
    main([])
    main(["--augment", "--download", "--root", "~/pictures"])
    ours = {"name": "cifar10", "root": "data", "download": False, "augment": False}
    assert loaded == [ours, ours | {"root": "~/pictures", "download": True, "augment": True}]
    plain, augmented = trained
    assert (plain["network"].depth, plain["network"].stem.conv.in_channels) == (100, 3)
    assert plain["recipe"] == Recipe(epochs=300, weight_decay=1e-4, schedule="step")
    assert (len(plain["train_set"]), len(plain["eval_set"])) == (1297, 500)
    assert (plain["run_dir"], plain["resume"], plain["num_workers"]) == (None, False, 2)
    rates = [given["network"].blocks[0].layers[0].drop_rate for given in (plain, augmented)]
    assert rates == [0.2, 0]


def test_images_in_memory_need_no_workers_and_options_for_data_arrive(trained, monkeypatch):
    loaded = []

    def load(name, root, **options):
        loaded.append(options)
        images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1] * 2)
        dataset = HeldImages(images, labels, (0.5,) * 3, (0.5,) * 3)
        return Data(name, dataset, dataset, ("a", "b"), (3, 8, 8))

    monkeypatch.setattr(command_line, "load_data", load)
    command = [*"--data folder --depth 10 --growth-rate 2 --device cpu".split()]
    more = "--image-size 8 --skip-corrupt --in-memory --on-device --augment --validation 0.5"
    main([*command, *more.split()])
    main([*command, "--workers", "3", "--no-in-memory"])
    assert [given["num_workers"] for given in trained] == [0, 3]
    plain = {"download": False, "augment": False}
    chosen = {"image_size": 8, "skip_corrupt": True, "in_memory": True, "device": "cpu"}
    assert loaded == [chosen | plain | {"augment": True}, plain | {"in_memory": False}]


def test_it_trains_and_resumes(tmp_path, capsys):
    command = [*SMALL, "--run-dir", str(tmp_path), "--validation", "0.2", "--seed", "5"]
    main(command)
    printed = capsys.readouterr().out
    assert re.search(
        r"^714 parameters, dropout 0\.2 after each convolution, fan_out initialisation, Recipe\(",
        printed,
    )
    assert "seed=5" in printed
    assert re.search(r"after 1 epoch: validation error \d+\.\d\d %", printed)
    history = json.loads((tmp_path / "history.json").read_text())
    assert f"error {100 * (1 - history['eval_accuracy'][0]):.2f} %" in printed
    main([*command, "--resume"])
    assert json.loads((tmp_path / "history.json").read_text()) == history
    with pytest.raises(SystemExit, match=r"^error: run_dir .*last\.pt.*--resume.*another folder"):
        main(command)


def test_a_run_that_is_stopped_says_so_and_ends_with_the_status_of_ctrl_c(monkeypatch, capsys):
    def stopped(*arguments, **options):
        return History([1.0], [0.5], [1.0], [0.75], [2.0], interrupted=True)

    monkeypatch.setattr(command_line, "train", stopped)
    with pytest.raises(SystemExit) as caught:
        main(SMALL)
    assert caught.value.code == 130
    printed = capsys.readouterr().out
    assert "after 1 epoch: test error 25.00 %, training loss 1.0000 nats, 2 s" in printed


@pytest.mark.parametrize(
    "options, message",
    [
        (["--depth", "11"], "error: depth must be 6n + 4 with bottleneck"),
        (["--drop-rate", "1"], "error: drop_rate must be a number in [0, 1), got 1.0"),
        (["--augment"], "error: augment must be False for 'digits'"),
        (["--efficient", "magic"], "error: efficient must be one of"),
        (["--validation", "1.5"], "error: --validation must be a number in (0, 1), got 1.5"),
        (["--validation", "0.001"], "error: --validation must leave at least 10 images"),
        (["--workers", "-1"], "error: --workers must be an integer of at least 0, got -1"),
        (["--run-dir", "/dev/null/run"], "error: run_dir must be a folder to write to, got '/dev"),
        (["--seed", "9" * 19], "error: seed must be an integer below 2**63"),
        (["--validation", "0.5", "--seed", "9" * 10], "error: seed must be an integer below 2**32"),
        (["--data", "cifar10", "--root", "/dev/null"], "error: root must be a folder, got '/dev/n"),
        (["--device", "cuda:99"], "error: device must exist"),
        (["--resume"], "error: run_dir must be given to resume a run"),
        (["--data", "cifar10", "--root", "nowhere"], "error: data set 'cifar10' is not at nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_ends_in_one_line(options, message):
    with pytest.raises(SystemExit) as caught:
        main([*SMALL, *options])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_is_not_installed_ends_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not there
    with pytest.raises(SystemExit, match=r"^error: scikit-learn is not installed: bring it with"):
        main(SMALL)


@pytest.mark.slow
def test_it_runs_as_a_module():
    command = [sys.executable, "-W", "error", "-m", "densenet_from_scratch.train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "python -m densenet_from_scratch.train" in done.stdout
    assert "--growth-rate" in done.stdout
