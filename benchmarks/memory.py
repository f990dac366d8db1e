"""Training of DenseNets beside its peers: bytes and time of a step, one run, in turn.

    uv run python benchmarks/memory.py
    uv run python benchmarks/memory.py --network densenet121 --batches 8 16 --rounds 9 --no-compile
    uv run python benchmarks/memory.py --small          # seconds: does everything run?

Measured are torchvision's network, as it is, with memory_efficient=True and compiled, with three
budgets for what it may store; and ours, in each way of ``DenseNet(efficient=...)``, of which
"checkpoint" is what the well-known memory-efficient implementation does. All have the same weights
and images, and must give torchvision's outputs and gradients. What the compiler takes, minutes for
each budget, is told apart. It prints bytes, milliseconds and ratios to torchvision as it is, and
writes a page with a table and a figure, and memory.json.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from common import RESULTS, about, origin, save, within_rounds
from torch import Tensor, nn
from torch._functorch import config
from torch._inductor.utils import fresh_cache
from torch.nn import functional as F
from torchvision.models import DenseNet as TorchvisionDenseNet
from tqdm import tqdm

from densenet_from_scratch import DenseNet, from_torchvision
from densenet_from_scratch.arguments import check_choice, check_count, check_device
from densenet_from_scratch.course.plots import PALETTE, new_axes, to_png
from densenet_from_scratch.kernels import cpu as fused
from densenet_from_scratch.measure import peak_bytes, saved_bytes, seconds_side_by_side

PEER = "torchvision"
BUDGETS = (1.0, 0.5, 0.1)  # of what a compiled network stores by default
WAYS = (False, "checkpoint", "selective", "shared", "shared-recompute")
COMPILER = "inductor"
# growth rate, layers in each block, k_0, image size, images at once on a CPU and on a GPU
NETWORKS = {
    "BC (100,12)": (12, (16, 16, 16), 24, 32, (64, 64)),
    "densenet121": (32, (6, 12, 24, 16), 64, 224, (8, 64)),
    "BC (190,40)": (40, (31, 31, 31), 80, 32, (2, 64)),
    "densenet201": (32, (6, 12, 48, 32), 64, 224, (4, 64)),
    "small": (4, (3, 2), 8, 32, (2, 2)),
}
# Of outputs and of all gradients together. Rounding puts some values on the other side of a ReLU's
# zero, and then the gradient there is another one; tests compare in float64.
TOLERANCES = {"outputs": 1e-4, "gradients": 2e-2}


# --- Networks, and their step --------------------------------------------------------------------


def torchvision_network(name: str, memory_efficient: bool = False) -> nn.Module:
    """Return torchvision's network; for small images with the paper's stem."""
    growth_rate, blocks, k0, size, _ = NETWORKS[name]
    torch.manual_seed(0)
    network = TorchvisionDenseNet(
        growth_rate,
        blocks,
        k0,
        num_classes=10 if size == 32 else 1000,
        memory_efficient=memory_efficient,
    )
    if size == 32:
        network.features.conv0 = nn.Conv2d(3, k0, 3, padding=1, bias=False)
        for part in ("norm0", "relu0", "pool0"):
            setattr(network.features, part, nn.Identity())
    return network


def compiled(network: nn.Module, budget: float) -> nn.Module:
    """Return a compiled copy, which may store this share of what it would by default."""

    def compiler(graph: Any, inputs: Any) -> Any:
        with config.patch(activation_memory_budget=budget):
            return torch._dynamo.lookup_backend(COMPILER)(graph, inputs)

    return torch.compile(copy.deepcopy(network), backend=compiler, dynamic=False)


def networks_of(name: str, compile_too: bool) -> dict[str, nn.Module]:
    """Return all networks, in training mode, with one set of weights."""
    theirs = torchvision_network(name)
    result = {PEER: theirs, f"{PEER}, memory_efficient": torchvision_network(name, True)}
    for budget in BUDGETS if compile_too else ():
        limit = f", budget {budget:g}" if budget < 1 else ""
        result[f"{PEER}, compiled{limit}"] = compiled(theirs, budget)
    growth_rate, blocks, k0, size, _ = NETWORKS[name]
    for way in WAYS:
        ours = DenseNet(
            growth_rate,
            blocks,
            num_init_features=k0,
            num_classes=10 if size == 32 else 1000,
            small_inputs=size == 32,
            efficient=way,
        )
        ours.load_state_dict(from_torchvision(theirs.state_dict()))
        result[f"ours, {way}"] = ours
    return result


def step(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Compute the gradients of all weights, and return the outputs."""
    network.zero_grad()
    outputs = network(images)
    F.cross_entropy(outputs, labels).backward()
    return outputs.detach()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's gradients by its parameters' names, torchvision's by ours."""
    network = getattr(network, "_orig_mod", network)  # what was compiled
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return found if isinstance(network, DenseNet) else from_torchvision(found)


def require_same(name: str, what: str, found: list[Tensor], expected: list[Tensor]) -> None:
    """Raise AssertionError where a network computes something else than torchvision's."""
    values, right = (torch.cat([t.flatten() for t in tensors]) for tensors in (found, expected))
    error = float((values - right).norm() / right.norm())
    if not error <= TOLERANCES[what]:
        raise AssertionError(f"{name}: {what} differ from {PEER}'s by {error:.1e}")


# --- Measure, and write down ---------------------------------------------------------------------


def prepare(
    networks: dict[str, nn.Module], images: Tensor, labels: Tensor
) -> tuple[dict[str, Callable], dict[str, float], dict[str, str]]:
    """Return the steps to be timed, the seconds to compile, and why the others are not.

    Raises:
        AssertionError: one of them computes other outputs or gradients than torchvision's.
    """
    steps: dict[str, Callable] = {}
    seconds, left_out = {}, {}
    torch._dynamo.reset()
    for name, network in (bar := tqdm(networks.items(), leave=False)):
        bar.set_description(f"prepare: {name}")
        run = partial(step, network, images, labels)
        started = perf_counter()
        try:
            with fresh_cache():  # nothing compiled earlier is found again
                outputs = run()
        except RuntimeError as error:  # no compiler, or no memory
            if name == PEER:
                raise
            left_out[name] = " ".join(str(error).split("\n\n")[0].split())
            continue
        if "compiled" in name:
            seconds[name] = perf_counter() - started
        found = gradients(network)
        if name == PEER:
            expected = outputs, found
        assert found.keys() == expected[1].keys(), name
        require_same(name, "outputs", [outputs], [expected[0]])
        require_same(
            name, "gradients", [found[key] for key in expected[1]], [*expected[1].values()]
        )
        steps[name] = run
    return steps, seconds, left_out


def measure(name: str, batch: int, options: argparse.Namespace, device: str) -> dict:
    """Measure every way to train a network on one device."""
    size = NETWORKS[name][3]
    every = {n: part.to(device) for n, part in networks_of(name, not options.no_compile).items()}
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(10, (batch,), device=device)
    steps, compiling, left_out = prepare(every, images, labels)
    seconds = seconds_side_by_side(steps, options.rounds)
    times = within_rounds(seconds, PEER)
    found: dict[str, dict] = {}
    for way, run in tqdm(steps.items(), "bytes", leave=False):
        every[way].zero_grad()  # or a peak would be less by what the last gradients took
        stored, peak = saved_bytes(every[way], images), peak_bytes(run, device)
        unit = found.get(PEER, {"stored": stored, "peak": peak})
        found[way] = {
            "stored": stored,
            "peak": peak,
            "milliseconds": 1000 * median(seconds[way]),
            "ratio": {
                "stored": stored / unit["stored"],
                "peak": peak / unit["peak"],
                "time": times[way],
            },
            "compile seconds": compiling.get(way),
        }
    case = {"network": name, "device": device, "batch": batch}
    return case | {"found": found, "left out": left_out}


def title(result: dict) -> str:
    """Return what a result is of."""
    return f"{result['network']}, {result['device']}, batch {result['batch']}"


def table(result: dict) -> list[str]:
    """Return the lines of one result's table, in Markdown."""
    heads = ("stored, MiB", "ratio", "peak, MiB", "ratio", "step, ms", "ratio", "compiled in, s")
    lines = [f"| {title(result):34} | " + " | ".join(heads) + " |"]
    lines.append(f"|{'-' * 36}|" + "".join(f"{'-' * (len(head) + 1)}:|" for head in heads))
    for name, row in result["found"].items():
        compiling = row["compile seconds"]
        cells = []
        for value, ratio in (("stored", "stored"), ("peak", "peak"), ("milliseconds", "time")):
            amount = row[value] / (1 if ratio == "time" else 2**20)
            cells += [f"{amount:.1f}", f"{row['ratio'][ratio]:.3f}"]
        cells.append("" if compiling is None else f"{compiling:.0f}")
        pairs = zip(cells, heads, strict=True)
        lines.append(f"| {name:34} | " + " | ".join(f"{c:>{len(h)}}" for c, h in pairs) + " |")
    return lines + [f"| {n:34} | {why} | | | | | | |" for n, why in result["left out"].items()]


def draw(results: list[dict]) -> bytes:
    """Draw bytes and time in units of torchvision's: two panels for each result."""
    rows = max(len(result["found"]) for result in results)
    height = (1.0 + 0.28 * rows) * len(results)
    figure, axes = new_axes(8.4, height, columns=2, rows=len(results))
    for result, left, right in zip(results, axes[::2], axes[1::2], strict=True):
        found = result["found"]
        for axis, quantity in ((left, "stored"), (right, "time")):
            for place, (name, row) in enumerate(found.items()):
                own, ratio = name.startswith("ours"), row["ratio"][quantity]
                look = {"hatch": "//"} if own else {}
                axis.barh(place, ratio, 0.75, color=PALETTE[own], edgecolor="white", **look)
                end, text = ratio, f"  {ratio:.2f}"
                if axis is left:
                    end = max(ratio, row["ratio"]["peak"])
                    text += f" / {row['ratio']['peak']:.2f}"
                axis.annotate(text, (end, place), va="center", fontsize=8)
            axis.set_yticks(range(len(found)), found if axis is left else [], fontsize=8)
            axis.invert_yaxis()
            axis.axvline(1, color="black", linewidth=1)
            axis.grid(False, axis="y")
            axis.margins(x=0.3 if axis is left else 0.15)
        peaks = [row["ratio"]["peak"] for row in found.values()]
        left.plot(peaks, range(len(peaks)), "D", color="black", fillstyle="none", markersize=5)
        left.set_title(title(result), fontsize=10)
        left.set_xlabel(f"bytes stored (bar) / at the peak (◇); {PEER}: 1", fontsize=9)
        right.set_xlabel(f"time of a step; {PEER}: 1", fontsize=9)
    return to_png(figure)


def page(run: dict, results: list[dict]) -> str:
    """Return the results as a page for readers."""
    said = [
        f"{title(result)}: "
        + "; ".join(
            "{} {stored:.2f}, {peak:.2f} and {time:.2f}".format(name, **row["ratio"])
            for name, row in result["found"].items()
        )
        for result in results
    ]
    lines = [
        "# Training of DenseNets",
        "",
        origin(run),
        "Fused kernels on the CPU: " + ("compiled." if run["fused kernels"] else "none."),
        "",
        "Outputs and gradients of a batch in float32, all from the same weights. Stored are the",
        "bytes kept for the backward pass; the peak is by how much memory grew at its highest in a",
        f"step. Ratios are to {PEER} as it is; those of time are medians over the rounds",
        f"({run['rounds']}) in which each ran once, in turn. A budget is the share of the",
        "compiler's own choice that it may store; its seconds are those of the first step.",
        "",
        *(line for result in results for line in (*table(result), "")),
        f"![Bars: bytes stored, at the peak, and time, in units of {PEER}'s. {'. '.join(said)}.]"
        "(memory.png)",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = list(NETWORKS)
    parser.add_argument("--network", nargs="+", default=names[:2], help=f"of {', '.join(names)}")
    parser.add_argument("--batches", type=int, nargs="+", help="instead of each network's own")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each")
    parser.add_argument("--threads", type=int, help="of the processor; by default PyTorch's number")
    parser.add_argument("--device", nargs="+", help="by default the CPU, and the GPU if any")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--small", action="store_true", help="a small network, one round, no-compile"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    if options.small:
        options.network, options.batches, options.rounds = ["small"], [2], 1
        options.no_compile = True
    devices = options.device or ["cpu"] + ["cuda"] * torch.cuda.is_available()
    try:
        for index, name in enumerate(options.network):
            check_choice(f"--network[{index}]", name, NETWORKS)
        for index, batch in enumerate(options.batches or ()):
            check_count(f"--batches[{index}]", batch, minimum=2)
        check_count("--rounds", options.rounds)
        devices = [check_device(device).type for device in devices]
        if options.threads is not None:
            torch.set_num_threads(check_count("--threads", options.threads))
    except ValueError as error:
        parser.error(str(error))
    run = about(["torchvision"], devices)
    run |= {"rounds": options.rounds, "fused kernels": fused.kernels(torch.float32) is not None}
    torch.backends.cudnn.allow_tf32 = False  # or rounding hides whether gradients are the same
    results = []
    for device in devices:
        for name in tqdm(options.network, device):
            for batch in options.batches or [NETWORKS[name][4][device != "cpu"]]:
                results.append(measure(name, batch, options, device))
                tqdm.write("\n".join([*table(results[-1]), ""]))
    save("memory", run | {"results": results}, page(run, results), draw(results), options.out)


if __name__ == "__main__":
    main()
