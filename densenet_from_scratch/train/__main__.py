"""The command line of :mod:`densenet_from_scratch.train`, for the paper's CIFAR experiments."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from densenet_from_scratch.arguments import check_choice, check_count
from densenet_from_scratch.data import DATASETS, Data, held_images, load_data, stratified_split
from densenet_from_scratch.dense import DROP_AFTER
from densenet_from_scratch.efficient import BLOCK_TYPES
from densenet_from_scratch.measure import count_parameters
from densenet_from_scratch.model import densenet_cifar
from densenet_from_scratch.plain import INIT_MODES
from densenet_from_scratch.train import SCHEDULES, Recipe, train

INTERRUPTED = 130  # exit status of a program that was stopped by Ctrl-C

EXAMPLES = """\
Rows of the paper's Table 2 (each a test error in %; CIFAR-10 without + is without --augment):
  DenseNet-BC (L=100, k=12), C10+:   --data cifar10 --augment
  DenseNet-BC (L=250, k=24), C100+:  --data cifar100 --augment --depth 250 --growth-rate 24
  DenseNet (L=40, k=12), C10:        --data cifar10 --depth 40 --no-bottleneck --compression 1
The defaults are the paper's recipe: 300 epochs, batches of 64, learning rate 0.1 divided by 10
after half and three quarters, weight decay 1e-4, Nesterov momentum 0.9, and dropout 0.2 without
--augment, after every convolution but the first. First weights are scaled by the fan-out, as in the
authors' code. With --drop-after layer --init-mode fan_in, both are torchvision's.
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a wrong value ends the program with one line that names it."""
    parser = argparse.ArgumentParser(
        prog="python -m densenet_from_scratch.train",
        description="Train a DenseNet by the recipe of Huang et al. (2017), section 4.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", choices=DATASETS, default="cifar10")
    data.add_argument(
        "--root",
        default="data",
        help="folder of torchvision's data sets (data), or with --data folder the folder that "
        "holds train and test (or val), with a folder of images for each class",
    )
    data.add_argument("--download", action="store_true", help="fetch the data if it is missing")
    data.add_argument("--augment", action="store_true", help="mirror and shift (the paper's +)")
    data.add_argument(
        "--validation",
        type=float,
        metavar="FRACTION",
        help="evaluate on this share of the training images, not on the test set",
    )
    data.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="scale the shorter side of a folder's images to this and cut out the middle",
    )
    data.add_argument("--skip-corrupt", action="store_true", help="leave out damaged image files")
    data.add_argument(
        "--in-memory",
        action=argparse.BooleanOptionalAction,
        help="hold all images in memory (default: if they take less than 1 GiB)",
    )
    data.add_argument(
        "--on-device", action="store_true", help="hold them on the device that trains"
    )
    data.add_argument(
        "--workers",
        type=int,
        help="processes that prepare images (default 2, or 0 for images held in memory)",
    )
    network = parser.add_argument_group("network")
    network.add_argument("--depth", type=int, default=100, help="L (default 100)")
    network.add_argument("--growth-rate", type=int, default=12, help="k (default 12)")
    network.add_argument("--no-bottleneck", action="store_true", help="basic layers, no B")
    network.add_argument("--compression", type=float, default=0.5, help="θ (default 0.5; 1: no C)")
    network.add_argument("--drop-rate", type=float, help="default 0.2, or 0 with --augment")
    network.add_argument(
        "--drop-after",
        choices=DROP_AFTER,
        default="convolution",
        help="dropout after each convolution but the first (default; the paper, section 4.2, and "
        "the authors' code), or only on each dense layer's output (torchvision)",
    )
    network.add_argument(
        "--init-mode",
        choices=INIT_MODES,
        default="fan_out",
        help="first weights scaled by the fan-out (default; the authors' code) or by the fan-in "
        "(torchvision)",
    )
    ways = [way for way in BLOCK_TYPES if isinstance(way, str)]
    network.add_argument(
        "--efficient", nargs="?", const=True, default=False, metavar="|".join(ways)
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=int, default=300)
    recipe.add_argument("--batch-size", type=int, default=64)
    recipe.add_argument("--learning-rate", type=float, default=0.1)
    recipe.add_argument("--weight-decay", type=float, default=1e-4)
    recipe.add_argument("--schedule", choices=SCHEDULES, default="step")
    recipe.add_argument("--seed", type=int, default=0)
    recipe.add_argument("--amp", action="store_true", help="mixed precision in bfloat16")
    run = parser.add_argument_group("run")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    run.add_argument("--run-dir", help="folder for checkpoints and history")
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says, and print the network's size and final error."""
    options = parse(arguments)
    try:
        _run(options)
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error


def _run(options: argparse.Namespace) -> None:
    check_choice("efficient", options.efficient, BLOCK_TYPES)
    if options.workers is not None:
        check_count("--workers", options.workers, minimum=0)
    recipe = Recipe(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        schedule=options.schedule,
        seed=options.seed,
        amp=options.amp,
    )
    data = _load(options)
    workers = options.workers
    if workers is None:
        workers = 2 if held_images(data.train) is None else 0
    train_set, eval_set = data.train, data.test
    if options.validation is not None:
        try:
            eval_set, train_set = stratified_split(data.train, options.validation, options.seed)
        except ValueError as error:
            raise ValueError(str(error).replace("fraction", "--validation", 1)) from error
    drop_rate = options.drop_rate
    if drop_rate is None:
        drop_rate = 0.0 if options.augment else 0.2
    torch.manual_seed(options.seed)
    network = densenet_cifar(
        options.depth,
        options.growth_rate,
        not options.no_bottleneck,
        options.compression,
        drop_rate=drop_rate,
        num_classes=data.num_classes,
        efficient=options.efficient,
        in_channels=data.image_shape[0],
        drop_after=options.drop_after,
        init_mode=options.init_mode,
    )
    print(
        f"{count_parameters(network):,} parameters, dropout {drop_rate} after each "
        f"{options.drop_after}, {options.init_mode} initialisation, {recipe}"
    )
    history = train(
        network,
        train_set,
        eval_set,
        recipe,
        device=options.device,
        run_dir=options.run_dir,
        resume=options.resume,
        num_workers=workers,
        label=options.data,
    )
    if len(history):
        part = "test" if options.validation is None else "validation"
        wrong, finished = 100 * (1 - history.eval_accuracy[-1]), len(history)
        print(
            f"after {finished} epoch{'s' * (finished != 1)}: {part} error {wrong:.2f} %, "
            f"training loss {history.train_loss[-1]:.4f} nats, {sum(history.seconds):.0f} s"
        )
    if history.interrupted:
        raise SystemExit(INTERRUPTED)


def _load(options: argparse.Namespace) -> Data:
    chosen: dict[str, Any] = {"download": options.download, "augment": options.augment}
    given = {
        "image_size": options.image_size,
        "skip_corrupt": options.skip_corrupt or None,
        "in_memory": options.in_memory,
        "device": options.device if options.on_device else None,
    }
    chosen |= {name: value for name, value in given.items() if value is not None}
    return load_data(options.data, options.root, **chosen)


if __name__ == "__main__":
    main()
