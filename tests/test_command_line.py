"""``python -m densenet_from_scratch.train``: what it trains, prints and refuses."""

import json
import re
import subprocess
import sys

import pytest

from densenet_from_scratch.command_line import main, parse

SMALL = "--data digits --depth 10 --growth-rate 2 --epochs 1 --workers 0 --device cpu".split()


def test_the_defaults_are_the_papers():
    options = parse([])
    assert (options.data, options.depth, options.growth_rate) == ("cifar10", 100, 12)
    assert (options.compression, options.no_bottleneck) == (0.5, False)
    assert (options.epochs, options.batch_size, options.schedule) == (300, 64, "step")
    assert (options.learning_rate, options.weight_decay) == (0.1, 1e-4)


def test_it_trains_and_resumes(tmp_path, capsys):
    command = [*SMALL, "--run-dir", str(tmp_path), "--validation", "0.2", "--seed", "5"]
    main(command)
    printed = capsys.readouterr().out
    assert re.search(r"^714 parameters, dropout 0\.2, Recipe\(epochs=1", printed)
    assert "seed=5" in printed
    assert re.search(r"after 1 epochs: validation error \d+\.\d\d %", printed)
    history = json.loads((tmp_path / "history.json").read_text())
    assert f"error {100 * (1 - history['eval_accuracy'][0]):.2f} %" in printed
    main([*command, "--resume"])
    assert json.loads((tmp_path / "history.json").read_text()) == history


@pytest.mark.parametrize(
    "options, message",
    [
        (["--depth", "11"], "error: depth must be 6n + 4 with bottleneck"),
        (["--drop-rate", "1"], "error: drop_rate must be a number in [0, 1), got 1.0"),
        (["--augment"], "error: augment must be False for 'digits'"),
        (["--efficient", "magic"], "error: efficient must be one of"),
        (["--validation", "1.5"], "error: fraction must be a number in (0, 1), got 1.5"),
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


def test_it_runs_as_a_module():
    command = [sys.executable, "-W", "error", "-m", "densenet_from_scratch.train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "python -m densenet_from_scratch.train" in done.stdout
    assert "--growth-rate" in done.stdout
