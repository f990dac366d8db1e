"""Training memory and time of every way to run a DenseNet, beside torchvision's, in one run.

    uv run python benchmarks/memory.py
    uv run python benchmarks/memory.py --cases "BC (100,12)" densenet121 --rounds 9
    uv run python benchmarks/memory.py --device cuda

Measured are torchvision's densenet, plain and with memory_efficient=True, and each value of
``DenseNet(efficient=...)``: same weights, same images, a training step of each in turn. It prints
ratios to both of torchvision's, and writes memory.json and memory.png. Bytes stored are counted,
peaks are measured, times are the medians of the ratios within a round.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet as TorchvisionDenseNet
from tqdm import tqdm

from densenet_from_scratch import DenseNet, from_torchvision
from densenet_from_scratch.arguments import check_choice, check_count
from densenet_from_scratch.course.plots import PALETTE, new_axes, to_png
from densenet_from_scratch.kernels import cpu as fused
from densenet_from_scratch.measure import peak_bytes, saved_bytes, seconds_side_by_side

PLAIN, CHECKPOINTED = "torchvision", "torchvision, memory_efficient"
WAYS = (False, "checkpoint", "selective", "shared", "shared-recompute")
CIFAR = {"small_inputs": True, "num_classes": 10}
IMAGENET = {"small_inputs": False, "num_classes": 1000}
# growth rate, layers in each block, k_0, image size, images at once on a CPU and on a GPU
CASES = {
    "BC (100,12)": (12, (16, 16, 16), 24, 32, (64, 64)),
    "BC (190,40)": (40, (31, 31, 31), 80, 32, (2, 64)),
    "densenet121": (32, (6, 12, 24, 16), 64, 224, (8, 64)),
    "densenet201": (32, (6, 12, 48, 32), 64, 224, (4, 64)),
}


def torchvision_network(case: str, memory_efficient: bool) -> nn.Module:
    """Return torchvision's network of a case; for small images with the paper's stem."""
    growth_rate, blocks, k0, size, _ = CASES[case]
    network = TorchvisionDenseNet(
        growth_rate,
        blocks,
        k0,
        num_classes=10 if size == 32 else 1000,
        memory_efficient=memory_efficient,
    )
    if size == 32:
        network.features.conv0 = nn.Conv2d(3, k0, 3, padding=1, bias=False)
        for name in ("norm0", "relu0", "pool0"):
            setattr(network.features, name, nn.Identity())
    return network


def networks_of(case: str) -> dict[str, nn.Module]:
    """Return all networks of a case, in training mode, with one set of weights."""
    growth_rate, blocks, k0, size, _ = CASES[case]
    torch.manual_seed(0)
    networks = {PLAIN: torchvision_network(case, False)}
    weights = networks[PLAIN].state_dict()
    networks[CHECKPOINTED] = torchvision_network(case, True)
    networks[CHECKPOINTED].load_state_dict(weights)
    for way in WAYS:
        network = DenseNet(
            growth_rate,
            blocks,
            num_init_features=k0,
            efficient=way,
            **(CIFAR if size == 32 else IMAGENET),
        )
        network.load_state_dict(from_torchvision(weights))
        networks[f"ours, {way}"] = network
    return networks


def dense_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the dense blocks of a network, ours or torchvision's."""
    if isinstance(network, DenseNet):
        return list(network.blocks)
    return [part for name, part in network.features.named_children() if "denseblock" in name]  # type: ignore[operator]


def block_inputs(case: str, batch: int, device: str) -> list[Tensor]:
    """Return random maps of the shapes that enter the dense blocks."""
    growth_rate, blocks, channels, size, _ = CASES[case]
    size = size if size == 32 else size // 4
    inputs = []
    for layers in blocks:
        shape = (batch, channels, size, size)
        inputs.append(torch.randn(shape, device=device, requires_grad=True))
        channels, size = (channels + layers * growth_rate) // 2, size // 2
    return inputs


def measure(case: str, options: argparse.Namespace, device: str) -> dict:
    """Measure every network of a case on one device."""
    size, batches = CASES[case][3:]
    batch = options.batch or batches[device != "cpu"]
    networks = {name: network.to(device) for name, network in networks_of(case).items()}
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(10, (batch,), device=device)

    def step_of(network: nn.Module) -> Callable[[], None]:
        def step() -> None:
            network.zero_grad()
            F.cross_entropy(network(images), labels).backward()

        return step

    steps = {name: step_of(network) for name, network in networks.items()}
    seconds = seconds_side_by_side(steps, options.rounds)
    # Storage is proportional to the batch: two images tell it.
    inputs = block_inputs(case, 2, device)
    results = {}
    for name, network in networks.items():
        pairs = zip(dense_blocks(network), inputs, strict=True)
        in_blocks = sum(saved_bytes(block, x) for block, x in pairs)
        network.zero_grad()
        results[name] = {
            "stored in dense blocks": in_blocks // 2,
            "stored": saved_bytes(network, images[:2]) // 2,
            "peak": peak_bytes(steps[name], device) // batch,
            "seconds": median(seconds[name]),
            "time": {
                peer: median(a / b for a, b in zip(seconds[name], seconds[peer], strict=True))
                for peer in (PLAIN, CHECKPOINTED)
            },
        }
    return {"case": case, "device": device, "batch": batch, "results": results}


QUANTITIES = ("stored in dense blocks", "stored", "peak")


def ratios(measured: dict, peer: str) -> dict[str, dict[str, float]]:
    """Return every quantity in units of one of torchvision's."""
    results = measured["results"]
    return {
        name: {q: result[q] / results[peer][q] for q in QUANTITIES}
        | {"step time": result["time"][peer]}
        for name, result in results.items()
    }


def table(measured: dict) -> str:
    """Write a case as text: ratios to torchvision plain / to memory_efficient."""
    lines = [
        f"{measured['case']}, batch {measured['batch']}, {measured['device']}: in units of "
        "torchvision plain / of memory_efficient=True",
        f"{'':32}" + "".join(f"{title:>24}" for title in (*QUANTITIES, "step time")),
    ]
    plain, checkpointed = (ratios(measured, peer) for peer in (PLAIN, CHECKPOINTED))
    for name in measured["results"]:
        cells = "".join(
            f"{plain[name][q]:>15.3f} / {checkpointed[name][q]:6.3f}"
            for q in (*QUANTITIES, "step time")
        )
        lines.append(f"{name:32}{cells}")
    return "\n".join(lines)


def draw(results: list[dict], path: Path) -> None:
    """Draw stored bytes and step time in units of torchvision plain: a panel for each case."""
    figure, axes = new_axes(8.4, 2.6 * len(results), columns=2, rows=len(results))
    for row, measured in enumerate(results):
        found = ratios(measured, PLAIN)
        for axis, quantity in zip(
            axes[2 * row : 2 * row + 2], ("stored", "step time"), strict=True
        ):
            for place, name in enumerate(found):
                value = found[name][quantity]
                look = {"hatch": "//"} if name.startswith("torchvision") else {}
                axis.barh(place, value, 0.7, color=PALETTE[place], edgecolor="white", **look)
                axis.annotate(f" {value:.2f}", (value, place), va="center", fontsize=8)
            axis.set_yticks(range(len(found)), found if axis is axes[2 * row] else [], fontsize=8)
            axis.invert_yaxis()
            axis.axvline(1, color="black", linewidth=1)
            axis.grid(False, axis="y")
            axis.margins(x=0.15)
            axis.set_xlabel(f"{quantity}, torchvision plain = 1", fontsize=9)
            case = f"{measured['case']}, batch {measured['batch']}, {measured['device']}"
            axis.set_title(case if quantity == "stored" else "", fontsize=10)
    path.write_bytes(to_png(figure))


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), help=f"of {list(CASES)}")
    parser.add_argument("--batch", type=int, help="images at once, instead of the case's own")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each")
    parser.add_argument("--device", nargs="+", help="by default the CPU, and the GPU if any")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the results")
    options = parser.parse_args()
    try:
        for index, case in enumerate(options.cases):
            check_choice(f"--cases[{index}]", case, CASES)
        if options.batch is not None:
            check_count("--batch", options.batch, minimum=2)
        check_count("--rounds", options.rounds)
    except ValueError as error:
        parser.error(str(error))
    devices = options.device or ["cpu"] + ["cuda"] * torch.cuda.is_available()
    compiled = fused.kernels(torch.float32) is not None
    print("fused kernels on the CPU:", "compiled" if compiled else "none, PyTorch's operations")
    results = []
    for device in devices:
        for case in tqdm(options.cases, device):
            results.append(measure(case, options, device))
            tqdm.write(table(results[-1]) + "\n")
    about = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "fused kernels": compiled,
        "gpu": torch.cuda.get_device_name() if "cuda" in devices else None,
        "rounds": options.rounds,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "memory.json").write_text(json.dumps({**about, "results": results}, indent=2))
    draw(results, options.out / "memory.png")
    print(f"written: {options.out / 'memory.json'}, {options.out / 'memory.png'}")


if __name__ == "__main__":
    main()
