"""Export to ONNX, for runtimes made for inference: the fastest way to deploy on a CPU (chapter 11).

What is written is the graph of a frozen copy: norms folded into the convolutions before them, the
others one BatchNormalization each, and transitions that pool before they convolve. ONNX Runtime
and OpenVINO know these operations, join them, and lay the weights out for the processor once:

    from densenet_from_scratch.export import to_onnx
    to_onnx(network, "densenet.onnx")

    session = onnxruntime.InferenceSession("densenet.onnx")
    [logits] = session.run(None, {"images": images.numpy()})

It needs the extra ``export``. ``torch.export.export`` needs nothing, and takes a network or its
frozen copy as they are.
"""

import copy
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from densenet_from_scratch.arguments import check_count
from densenet_from_scratch.data import as_path, need
from densenet_from_scratch.frozen import FrozenDenseNet
from densenet_from_scratch.train.checkpoints import write_whole

OPSET = 18
"""The version of ONNX's operators in the file."""


class PlainOperations(nn.Module):
    """A frozen copy's plain operations, without its checks of the images.

    Args:
        frozen: the copy.
    """

    def __init__(self, frozen: FrozenDenseNet) -> None:
        super().__init__()
        self.frozen = frozen

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        return self.frozen.plain(images)


def to_onnx(
    network: nn.Module, path: str | os.PathLike, size: int | tuple[int, int] | None = None
) -> Path:
    """Write a network for inference as one ONNX file in float32, opset 18, whole or not at all.

    Its input ``images`` is (N, C, H, W) and its output ``logits`` (N, classes). The network may be
    in training and on any device, and stays as it is. DenseNet-121 takes half a minute.

    Args:
        network: a :class:`~densenet_from_scratch.DenseNet` as built, or a frozen copy.
        path: the file, in a folder that exists. A file that is there is replaced.
        size: pixels of the image's side, or its height and width, for a runtime that wants them
            fixed. By default the file takes all sizes that the network takes. N is always free.

    Returns:
        The path.

    Raises:
        ImportError: onnx or onnxscript, of the extra ``export``, is not installed.
        ValueError: the network is not as built, ``path`` is no file's, or ``size`` is too small.
        FileNotFoundError: the folder of ``path`` does not exist.
    """
    path = as_path("path", path)
    if path.is_dir():
        raise ValueError(f"path must be a file's, got {str(path)!r}, which is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists, got {str(path)!r}")
    frozen = copy.deepcopy(network) if isinstance(network, FrozenDenseNet) else None
    frozen = (frozen or FrozenDenseNet(network)).to("cpu", torch.float32)
    channels, minimum = frozen.in_channels, frozen.minimum_size
    if channels is None:
        raise ValueError("network must have a stem that begins with a convolution, to tell C")
    sides = {2: "height", 3: "width"}
    if size is None:
        height = width = 8 * minimum  # of the example: any size at which no stage has one pixel
    else:
        height, width = size if isinstance(size, tuple) and len(size) == 2 else (size, size)
        for side in (height, width):
            check_count("size", side, minimum)
        sides = {}
    need("onnx", "onnx")
    need("onnxscript", "onnxscript")
    program = torch.onnx.export(
        PlainOperations(frozen).eval(),
        (torch.zeros(2, channels, height, width),),
        dynamo=True,
        dynamic_shapes=({0: "batch", **sides},),
        input_names=["images"],
        output_names=["logits"],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    graph = program.model.graph
    for part in (graph, *graph):  # which line of which file on this machine made it
        part.metadata_props.clear()
    write_whole(path, program.save)
    return path
