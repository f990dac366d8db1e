"""Inference of DenseNet-121 beside its peers: same weights, same images, one run, in turn.

    uv run python benchmarks/inference.py
    uv run python benchmarks/inference.py --batches 1 16 --size 224 --rounds 20 --device cuda

Measured are torchvision's densenet121, timm's, and ours twice: the network, which runs its modules
and concatenates for every layer as the chapters write it, and its frozen copy, whose BatchNorms are
folded once for all and which concatenates nothing. It prints milliseconds and ratios to
torchvision's time in the same format and in its best, and writes inference.json and inference.png.
"""

import argparse
import copy
import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median

import timm
import torch
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

from densenet_from_scratch import densenet121, from_torchvision
from densenet_from_scratch.arguments import check_count
from densenet_from_scratch.course.plots import PALETTE, new_axes, to_png
from densenet_from_scratch.measure import seconds_side_by_side

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
BEST = "ratio to torchvision's best format"
PEERS = ("torchvision", "timm", "ours", "ours, frozen")


def peers() -> dict[str, nn.Module]:
    """Return the networks with one set of weights: as if trained, so that every BN does work."""
    torch.manual_seed(0)
    theirs = torchvision.models.densenet121()
    for part in theirs.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    weights = theirs.state_dict()
    hers = timm.create_model("densenet121", pretrained=False)
    hers.load_state_dict(weights)
    ours = densenet121()
    ours.load_state_dict(from_torchvision(weights))
    networks = (theirs.eval(), hers.eval(), ours.eval(), ours.frozen())
    return dict(zip(PEERS, networks, strict=True))


def check(networks: dict[str, nn.Module]) -> None:
    """Stop if one of them computes something else, in double precision.

    A frozen copy has folded its numbers in single precision, so another one is made for this.
    """
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    doubles = {name: copy.deepcopy(network).double() for name, network in networks.items()}
    doubles["ours, frozen"] = doubles["ours"].frozen()
    outputs = {name: network.eval()(x) for name, network in doubles.items()}
    for name, output in outputs.items():
        torch.testing.assert_close(output, outputs["torchvision"], rtol=1e-8, atol=1e-8, msg=name)


def run_of(network: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Return one forward pass of a peer as a function without arguments."""
    return lambda: network(images)


def measure(options: argparse.Namespace, device: str) -> list[dict]:
    """Time all peers for every batch size and memory format on one device."""
    networks = peers()
    check(networks)
    cases = [(batch, format_) for batch in options.batches for format_ in FORMATS]
    results = []
    for batch, format_ in tqdm(cases, device):
        layout = FORMATS[format_]
        images = torch.randn(batch, 3, options.size, options.size, device=device)
        images = images.to(memory_format=layout)
        runs = {}
        for name, network in networks.items():
            network.to(device=device, memory_format=layout)
            runs[name] = run_of(network, images)
        seconds = seconds_side_by_side(runs, options.rounds)
        times = {name: 1000 * median(values) for name, values in seconds.items()}
        # In each round all peers saw the same moment of the machine: compare within rounds.
        ratios = {
            name: median(a / b for a, b in zip(values, seconds["torchvision"], strict=True))
            for name, values in seconds.items()
        }
        results.append(
            {
                "device": device,
                "batch": batch,
                "format": format_,
                "milliseconds": times,
                "ratio to torchvision": ratios,
            }
        )
    for result in results:
        # The format that suits torchvision best is what a practitioner would use it in.
        same = [other for other in results if other["batch"] == result["batch"]]
        best = min(other["milliseconds"]["torchvision"] for other in same)
        times = result["milliseconds"]
        result[BEST] = {n: t / best for n, t in times.items()}
    return results


def table(results: list[dict]) -> str:
    """Write the results as text.

    They are milliseconds and, in brackets, the ratios to torchvision in the same and in its best
    format.
    """
    lines = [f"{'':31}" + "".join(f"{name:>23}" for name in PEERS)]
    for result in results:
        case = f"{result['device']}, batch {result['batch']}, {result['format']}"
        cells = [
            f"{result['milliseconds'][name]:9.1f} ({result['ratio to torchvision'][name]:.2f}, "
            f"{result[BEST][name]:.2f})"
            for name in PEERS
        ]
        lines.append(f"{case:31}" + "".join(f"{cell:>23}" for cell in cells))
    return "\n".join(lines)


def draw(results: list[dict], path: Path) -> None:
    """Draw the ratios to torchvision's time, a group of bars for each case."""
    figure, [axis] = new_axes(7.2, 1.2 + 0.7 * len(results))
    hatches, width = ("", "//", "..", "xx"), 0.8 / len(PEERS)
    for row, result in enumerate(results):
        for number, name in enumerate(PEERS):
            ratio = result["ratio to torchvision"][name]
            place = row + width * (number - (len(PEERS) - 1) / 2)
            look = {"color": PALETTE[number], "hatch": hatches[number], "edgecolor": "white"}
            axis.barh(place, ratio, width, label=name if row == 0 else None, **look)
            axis.annotate(f" {ratio:.2f}", (ratio, place), va="center", fontsize=7)
    cases = [f"{r['device']}, batch {r['batch']}\n{r['format']}" for r in results]
    axis.set_yticks(range(len(cases)), cases, fontsize=9)
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=1)
    axis.grid(False, axis="y")
    axis.set_xlabel("time, in units of torchvision's")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(PEERS), fontsize=9)
    path.write_bytes(to_png(figure))


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images at once")
    parser.add_argument("--size", type=int, default=224, help="pixels of their side")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each")
    parser.add_argument("--device", nargs="+", help="by default the CPU, and the GPU if any")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the results")
    options = parser.parse_args()
    try:
        for index, batch in enumerate(options.batches):
            check_count(f"--batches[{index}]", batch)
        check_count("--size", options.size, minimum=29)
        check_count("--rounds", options.rounds)
    except ValueError as error:
        parser.error(str(error))
    devices = options.device or ["cpu"] + ["cuda"] * torch.cuda.is_available()
    with torch.inference_mode():
        results = [result for device in devices for result in measure(options, device)]
    print(table(results))
    about = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if "cuda" in devices else None,
        "rounds": options.rounds,
        "size": options.size,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "inference.json").write_text(json.dumps({**about, "results": results}, indent=2))
    draw(results, options.out / "inference.png")
    print(f"written: {options.out / 'inference.json'}, {options.out / 'inference.png'}")


if __name__ == "__main__":
    main()
