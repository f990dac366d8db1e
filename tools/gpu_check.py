"""All that only a GPU can tell, in one command of some minutes, without a network.

    python tools/gpu_check.py                                # on a GPU
    python tools/gpu_check.py --device cpu --small           # does everything run?
    python tools/gpu_check.py --cifar cifar10.tar.xz         # and train in the time that is left

In turn: the tests marked ``cuda``; how fast a dense block is beside the memory traffic that it
cannot do without; the training benchmark; the inference benchmark; and training on CIFAR-10. Each
is a process of its own with a limit of time, and what it found is written as soon as it is there,
to steps.json and its own files in the folder ``--out``: stopped at any moment, what was done is
kept. It needs PyTorch, torchvision, numpy, scikit-learn, matplotlib, pytest, timm and tqdm.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from densenet_from_scratch import densenet_cifar  # noqa: E402
from densenet_from_scratch.arguments import check_device  # noqa: E402
from densenet_from_scratch.measure import seconds_side_by_side  # noqa: E402
from densenet_from_scratch.train.checkpoints import write_whole  # noqa: E402

KEPT = 4000  # letters of what a step has printed


class Record:
    """What was found so far, in a file that is always whole."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.steps = folder / "steps.json", []

    def add(self, name: str, **found: object) -> None:
        """Write what one more step has found."""
        self.steps.append({"step": name} | found)
        text = json.dumps(self.steps, indent=2) + "\n"
        write_whole(self.path, lambda part: part.write_text(text))
        print(f"== {name}: {json.dumps(found)[:300]}", flush=True)


def run(record: Record, name: str, seconds: float, *command: str) -> None:
    """Run a step for at most so long; record its last words."""
    if seconds < 5:
        record.add(name, left_out="no time left")
        return
    start, limit = time.monotonic(), False
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        said, bars = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        limit = True
        try:
            said, bars = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            said, bars = process.communicate()
    took = round(time.monotonic() - start, 1)
    code = process.returncode
    # What goes to stderr is progress, unless it ends in an error.
    text = said[-KEPT:] + (bars.split("\r")[-1][-KEPT:] if code else "")
    record.add(name, seconds=took, code=code, out_of_time=limit, said=text, command=list(command))


# --- The floor of a block ------------------------------------------------------------------------


def bandwidth(device: str, size: int) -> float:
    """Return the bytes a second that a copy of ``size`` numbers of float32 reads and writes."""
    source = torch.randn(size, device=device)
    target = torch.empty_like(source)
    seconds = seconds_side_by_side({"copy": lambda: target.copy_(source)}, 9)["copy"]
    return 2 * source.nbytes / min(seconds)


def least_moved(layers: int, in_channels: int, growth_rate: int, bottleneck: int) -> int:
    """Return the numbers a pixel that a training step of a dense block must move, at least.

    Every operation that needs all of its input before it can give any of its output, such as a
    normalisation or a 3×3 convolution, reads and writes its maps in memory; what can be done along
    the way costs nothing. See ``densenet_from_scratch.kernels.gpu`` for the 1×1 convolutions.
    """
    k, wide = growth_rate, bottleneck * growth_rate
    numbers = 0
    for layer in range(layers):
        read = in_channels + layer * k
        forward = (read + 3 * wide) + (wide + k) + 3 * k  # 1×1 with norm2; 3×3; x̂ of the new maps
        again = read + 2 * wide
        new = 3 * k  # the gradient of the new maps, of Ĝ and x̂
        conv3 = 2 * wide + 2 * k + 3 * wide  # both gradients of the 3×3; the sums for norm2
        back = 4 * read + 4 * wide
        numbers += forward + again + new + conv3 + back
    return numbers


def floor(record: Record, device: str, small: bool) -> None:
    """Compare the step of a dense block with the time that its memory traffic takes."""
    speed = bandwidth(device, 1 << (22 if small else 28))
    batch, depth = (2, 22) if small else (64, 100)
    for way in (False, "shared", True):
        network = densenet_cifar(depth, 12, efficient=way).to(device).train()
        block = network.blocks[0]
        layers = len(block.layers)
        x = torch.randn(batch, 24, 32, 32, device=device, requires_grad=True)
        x = x.contiguous(memory_format=torch.channels_last)

        def step(block: torch.nn.Module = block, x: torch.Tensor = x) -> torch.Tensor:
            y = block(x)
            y.backward(torch.ones_like(y))
            return y

        seconds = median(seconds_side_by_side({"step": step}, 3 if small else 15)["step"])
        moved = 4 * batch * 32 * 32 * least_moved(layers, 24, 12, 4)
        record.add(
            f"floor, efficient={way}",
            bytes_a_second=speed,
            least_bytes=moved,
            floor_seconds=moved / speed,
            seconds=seconds,
            share_of_the_floor=moved / speed / seconds,
        )


# --- All steps -----------------------------------------------------------------------------------


def unpacked(archive: Path, folder: Path) -> Path:
    """Return a folder of images: ``archive`` itself, or what is unpacked of it."""
    if archive.is_dir():
        return archive
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    found = next(folder.rglob("train"), None)
    if found is None:
        raise SystemExit(f"--cifar must hold a folder train/, got {str(archive)!r}")
    return found.parent


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see whether it runs")
    parser.add_argument("--small", action="store_true", help="tiny sizes, in two minutes")
    parser.add_argument("--minutes", type=float, default=8, help="for everything together")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"), help="for the results")
    parser.add_argument("--cifar", type=Path, help="folder or archive of train/ and test/")
    options = parser.parse_args()
    try:
        device = check_device(options.device).type
    except ValueError as error:
        parser.error(str(error))
    end = time.monotonic() + 60 * options.minutes
    record, small = Record(options.out), ["--small"] * options.small

    def left(share: float) -> float:
        return share * (end - time.monotonic())

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    record.add("machine", device=name, torch=torch.__version__, python=sys.version.split()[0])

    tests = "test_cuda.py" if device == "cuda" else "test_triton.py"
    alone = (
        "-c",
        "/dev/null",
        "--rootdir",
        str(ROOT),
        "-p",
        "no:cacheprovider",
        "-q",
        "--tb=short",
    )
    run(record, "tests", left(0.35), "-m", "pytest", *alone, f"tests/{tests}")

    try:
        floor(record, device, options.small)
    except Exception as error:  # what comes after is worth having all the same
        record.add("floor", error=f"{type(error).__name__}: {error}"[:500])

    to = ("--device", device, "--out", str(options.out.resolve()), *small)
    run(record, "memory", left(0.5), "benchmarks/memory.py", *to)
    batches = () if options.small else ("--batches", "1", "8", "64")
    run(record, "inference", left(0.6), "benchmarks/inference.py", *batches, *to)

    if options.cifar:
        images = unpacked(options.cifar, options.out / "images")
        size = ("--depth", "10", "--epochs", "1") if options.small else ("--depth", "100")
        recipe = ("--augment", "--epochs", "20", "--schedule", "one-cycle", "--batch-size", "256")
        data = ("--data", "folder", "--root", str(images), "--image-size", "32")
        where = ("--device", device, "--run-dir", str(options.out / "cifar"), "--efficient")
        train = ("-m", "densenet_from_scratch.train", *data, *recipe, *size, *where)
        run(record, "training", left(1), *train)
    print(f"written: {record.path}")


if __name__ == "__main__":
    main()
