"""Inference of DenseNet-121 beside its peers: same weights, same images, one run, in turn.

    uv run --with openvino python benchmarks/inference.py
    uv run python benchmarks/inference.py --batches 1 16 --threads 1 --rounds 20
    uv run python benchmarks/inference.py --small          # a minute: does everything run?

Measured are torchvision's densenet121 and ours, each as it is, compiled, and in the runtimes for
ONNX; ours also frozen; and on a GPU recorded as CUDA graphs. All compute in float32, also those
that would take bfloat16 or TF32 where the processor can. What is not installed is left out,
and said. Compiling takes some minutes. It prints milliseconds and ratios to torchvision in its
faster memory format, and writes a page with a table and a figure, and inference.json.
"""

import argparse
import copy
import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import timm
import torch
from common import RESULTS, about, origin, save, within_rounds
from torch import Tensor, nn
from torchvision.models import DenseNet as TorchvisionDenseNet
from tqdm import tqdm

from densenet_from_scratch import DenseNet, from_torchvision
from densenet_from_scratch.arguments import check_count, check_device
from densenet_from_scratch.course.plots import PALETTE, new_axes, to_png
from densenet_from_scratch.data import need
from densenet_from_scratch.export import to_onnx
from densenet_from_scratch.measure import seconds_side_by_side

Run = Callable[[], Tensor]
DENSENET121 = (32, (6, 12, 24, 16))  # growth rate, layers in each block
SMALL = (8, (2, 2))
OPTIONAL = ("timm", "onnx", "onnxscript", "onnxruntime", "openvino")
THEIRS = ("torchvision", "torchvision, channels last")


def networks(growth_rate: int, blocks: tuple[int, ...]) -> dict[str, nn.Module]:
    """Return the networks with one set of weights: as if trained, so that every BN does work."""
    torch.manual_seed(0)
    k0 = 2 * growth_rate
    theirs = TorchvisionDenseNet(growth_rate, blocks, k0)
    for part in theirs.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    weights = theirs.state_dict()
    hers = timm.models.DenseNet(growth_rate, blocks)
    hers.load_state_dict(weights)
    ours = DenseNet(growth_rate, blocks, 0.5, k0, num_classes=1000, small_inputs=False)
    ours.load_state_dict(from_torchvision(weights))
    return {"torchvision": theirs.eval(), "timm": hers.eval(), "ours": ours.eval()}


# --- Ways to run a network: each takes it and images, and returns what is to be timed ------------


def eager(network: nn.Module, images: Tensor, layout=torch.channels_last) -> Run:
    """Run the network as it is."""
    network = copy.deepcopy(network).to(images.device, memory_format=layout)
    images = images.contiguous(memory_format=layout)
    return lambda: network(images)


def compiled(network: nn.Module, images: Tensor) -> Run:
    """Compile it, with its weights as constants."""
    network = copy.deepcopy(network).to(images.device, memory_format=torch.channels_last)
    network = torch.compile(network, dynamic=False, options={"freezing": True})
    return lambda: network(images)


def cuda_graph(network: nn.Module, images: Tensor) -> Run:
    """Record its kernels once; a replay starts them all at once, without Python."""
    run = eager(network, images)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is found out or set up at the first calls
        for _ in range(3):
            run()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run()
    return lambda: (graph.replay(), logits)[1]


def onnx_runtime(file: Callable[[], Path], images: Tensor) -> Run:
    """Load the file into ONNX Runtime."""
    need("onnxruntime", "onnxruntime")
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Or its threads would still wait for work, at full speed, while the next one is timed.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file(), settings, providers=["CPUExecutionProvider"])
    inputs = {"images": images.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def openvino(file: Callable[[], Path], images: Tensor) -> Run:
    """Load the file into OpenVINO."""
    need("openvino", "openvino")
    from openvino import Core

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = Core().compile_model(file(), "CPU", settings).create_infer_request()
    return lambda: torch.from_numpy(request.infer([images.numpy()])[0])


def export_theirs(network: nn.Module, path: Path, size: int) -> None:
    """Export torchvision's network by PyTorch's exporter, as its users would."""
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, size, size),),
        path,
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=["images"],
        external_data=False,
        verbose=False,
    )


def ways(options: argparse.Namespace, device: str, folder: Path) -> dict[str, Callable]:
    """Return every network in every way of running it: a function of images each."""
    found = networks(*(SMALL if options.small else DENSENET121))
    theirs, ours = found["torchvision"], found["ours"]
    result: dict[str, Callable] = {
        THEIRS[0]: partial(eager, theirs, layout=torch.contiguous_format),
        THEIRS[1]: partial(eager, theirs),
        "timm, channels last": partial(eager, found["timm"]),
        "torchvision, compiled": partial(compiled, theirs),
        "ours, modules": partial(eager, ours),
        "ours, frozen": partial(eager, ours.frozen()),
        "ours, frozen and compiled": partial(compiled, ours.frozen()),
    }
    if device != "cpu":
        result["torchvision, CUDA graph"] = partial(cuda_graph, theirs)
        result["ours, frozen, CUDA graph"] = partial(cuda_graph, ours.frozen())
        return result

    def file(name: str, write: Callable[[Path], None]) -> Path:
        path = folder / f"{name}.onnx"
        if not path.exists():
            need("onnx", "onnx")
            need("onnxscript", "onnxscript")
            write(path)
        return path

    write_theirs = partial(export_theirs, theirs, size=options.size)
    for name, write in (("torchvision", write_theirs), ("ours", partial(to_onnx, ours))):
        for runtime, load in (("ONNX Runtime", onnx_runtime), ("OpenVINO", openvino)):
            result[f"{name}, {runtime}"] = partial(load, partial(file, name, write))
    return result


# --- Measure, and write down ---------------------------------------------------------------------


def prepare(ways: dict[str, Callable], images: Tensor) -> tuple[dict[str, Run], dict[str, str]]:
    """Return what is to be timed, and why the others are not.

    Raises:
        AssertionError: one of them computes something else than torchvision's network.
    """
    runs: dict[str, Run] = {}
    left_out = {}
    for name, way in (bar := tqdm(ways.items(), leave=False)):
        bar.set_description(f"prepare: {name}")
        try:
            run = way(images)
            logits = run().cpu().clone()
        except (ImportError, RuntimeError) as error:  # not installed, or no compiler
            left_out[name] = str(error).splitlines()[0]
            continue
        expected = runs[THEIRS[0]]().cpu() if runs else logits
        tolerance = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance, msg=name)
        runs[name] = run
    return runs, left_out


def measure(options: argparse.Namespace, device: str) -> list[dict]:
    """Time every way for every batch size on one device."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        every = ways(options, device, Path(folder))
        for batch in tqdm(options.batches, device):
            images = torch.randn(batch, 3, options.size, options.size, device=device)
            runs, left_out = prepare(every, images)
            seconds = seconds_side_by_side(runs, options.rounds)
            best = min(THEIRS, key=lambda name: median(seconds[name]))
            results.append(
                {
                    "device": device,
                    "batch": batch,
                    "unit": best,
                    "milliseconds": {n: 1000 * median(v) for n, v in seconds.items()},
                    "ratio": within_rounds(seconds, best),
                    "left out": left_out,
                }
            )
    return results


def table(result: dict) -> list[str]:
    """Return the lines of one result's table, in Markdown."""
    title = f"{result['device']}, batch {result['batch']}"
    rows = [f"| {title:32} | milliseconds | ratio |", f"|{'-' * 34}|-------------:|------:|"]
    for name, ratio in result["ratio"].items():
        rows.append(f"| {name:32} | {result['milliseconds'][name]:12.1f} | {ratio:5.2f} |")
    return rows + [f"| {name:32} | {why} | |" for name, why in result["left out"].items()]


def draw(results: list[dict]) -> bytes:
    """Draw the ratios: a panel for each device and batch."""
    rows = max(len(result["ratio"]) for result in results)
    figure, axes = new_axes(7.5, (0.9 + 0.28 * rows) * len(results), rows=len(results))
    for axis, result in zip(axes, results, strict=True):
        for place, (name, ratio) in enumerate(result["ratio"].items()):
            own = name.startswith("ours")
            look = {"hatch": "//"} if own else {}
            axis.barh(place, ratio, 0.75, color=PALETTE[own], edgecolor="white", **look)
            axis.annotate(f" {ratio:.2f}", (ratio, place), va="center", fontsize=8)
        axis.set_yticks(range(len(result["ratio"])), result["ratio"], fontsize=8)
        axis.invert_yaxis()
        axis.axvline(1, color="black", linewidth=1)
        axis.grid(False, axis="y")
        axis.set_title(f"{result['device']}, batch {result['batch']}", fontsize=10)
        axis.set_xlabel(f"time; {result['unit']}: 1", fontsize=9)
    return to_png(figure)


def page(run: dict, results: list[dict]) -> str:
    """Return the results as a page for readers."""
    said = [
        f"On {r['device']}, batch {r['batch']}: "
        + "; ".join(f"{name} {ratio:.2f}" for name, ratio in r["ratio"].items())
        for r in results
    ]
    lines = [
        "# Inference of DenseNet-121",
        "",
        origin(run),
        "",
        f"Images of {run['size']} pixels, float32. Ratios are to torchvision in its faster memory",
        f"format, medians of {run['rounds']} rounds in which each ran once, in turn.",
        "",
        *(line for result in results for line in (*table(result), "")),
        f"![Bars: time in units of torchvision's. {'. '.join(said)}.](inference.png)",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images at once")
    parser.add_argument("--size", type=int, default=224, help="pixels of their side")
    parser.add_argument("--rounds", type=int, default=15, help="timings of each")
    parser.add_argument("--threads", type=int, help="of the processor; by default PyTorch's number")
    parser.add_argument("--device", nargs="+", help="by default the CPU, and the GPU if any")
    parser.add_argument("--small", action="store_true", help="a small network and one round")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    if options.small:
        options.batches, options.size, options.rounds = [1], 64, 1
    devices = options.device or ["cpu"] + ["cuda"] * torch.cuda.is_available()
    try:
        for index, batch in enumerate(options.batches):
            check_count(f"--batches[{index}]", batch)
        check_count("--size", options.size, minimum=29)
        check_count("--rounds", options.rounds)
        devices = [check_device(device).type for device in devices]
        if options.threads is not None:
            torch.set_num_threads(check_count("--threads", options.threads))
    except ValueError as error:
        parser.error(str(error))
    installed = [name for name in OPTIONAL if importlib.util.find_spec(name)]
    run = about(["torchvision", *installed], devices)
    run |= {"size": options.size, "rounds": options.rounds, "small": options.small}
    torch.backends.cudnn.allow_tf32 = False  # which some of them would use on a GPU, others not
    with torch.no_grad():
        results = [result for device in devices for result in measure(options, device)]
    for result in results:
        print("\n".join([*table(result), ""]))
    save("inference", run | {"results": results}, page(run, results), draw(results), options.out)


if __name__ == "__main__":
    main()
