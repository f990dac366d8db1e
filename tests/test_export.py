"""What is exported computes what the network computes, for all batch and image sizes."""

import sys
from types import SimpleNamespace
from typing import ClassVar

import onnx
import onnxruntime
import pytest
import torch
from networks import draw_norms
from torch import Tensor, nn

from densenet_from_scratch import DenseNet
from densenet_from_scratch.export import OPSET, to_onnx

SMALL = {"growth_rate": 4, "block_config": (2, 3), "num_init_features": 6}
NETWORKS = {
    "small images": SMALL,
    "ImageNet": SMALL | {"small_inputs": False},
    "basic layers, gray": SMALL | {"bottleneck": False, "compression": 1.0, "in_channels": 1},
}
networks = pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)


def trained(**options) -> DenseNet:
    """A network whose norms all differ from fresh ones, in evaluation."""
    torch.manual_seed(0)
    network = DenseNet(**(options or SMALL))
    draw_norms(network)
    return network.eval()


def images(network: DenseNet, *sizes: tuple[int, int, int]) -> list[Tensor]:
    """Batches of these numbers, heights and widths."""
    torch.manual_seed(1)
    return [torch.randn(n, network.in_channels, h, w) for n, h, w in sizes]


def require_same(found: Tensor, expected: Tensor) -> None:
    """Up to 1e-5 of the largest logit, which is rounding in float32."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def run_file(path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"images": x.numpy()})
    return torch.from_numpy(logits)


@pytest.fixture
def no_exporter(monkeypatch):
    """For what must be refused before the half minute that an export takes."""
    monkeypatch.setattr(torch.onnx, "export", None)


@pytest.mark.slow
@networks
def test_the_file_gives_what_the_network_gives(options, tmp_path):
    network = trained(**options)
    path = to_onnx(network, tmp_path / "network.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["network.onnx"]
    least = network.minimum_size
    for x in images(network, (1, 32, 32), (3, 33, 51), (2, least, least)):
        require_same(run_file(path, x), network(x).detach())


@pytest.mark.slow
def test_the_graph_is_one_that_runtimes_optimise(tmp_path):
    """Norms that no convolution can take are BatchNormalization, right before their ReLU."""
    path = to_onnx(trained(), tmp_path / "network.onnx", size=16)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    [opset] = model.opset_import
    assert (opset.domain, opset.version) == ("", OPSET)
    nodes = [node.op_type for node in model.graph.node]
    # A norm for each of five layers, the transition and the head; the other five are folded.
    assert nodes.count("BatchNormalization") == 7 and nodes.count("Conv") == 12
    assert set(nodes) == {
        *("AveragePool", "BatchNormalization", "Concat", "Conv", "Gemm", "ReduceMean", "Relu")
    }
    [pool] = [number for number, name in enumerate(nodes) if name == "AveragePool"]
    assert nodes[pool - 1 : pool + 2] == ["Relu", "AveragePool", "Conv"], "it pools first"
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", 3, 16, 16]


@pytest.mark.slow
def test_where_and_in_which_state_it_is_exported_does_not_matter(tmp_path):
    """The same file from a network in training in double precision as from its frozen copy."""
    network = trained(**SMALL)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    first = to_onnx(network.train().double(), tmp_path / "first.onnx", size=(8, 16)).read_bytes()
    assert network.training and next(network.parameters()).dtype == torch.float64
    for name, value in network.float().state_dict().items():
        assert torch.equal(value, state[name]), name
    frozen = network.double().frozen()
    (tmp_path / "second.onnx").write_text("old")
    assert to_onnx(frozen, tmp_path / "second.onnx", size=(8, 16)).read_bytes() == first
    assert next(frozen.parameters()).dtype == torch.float64
    assert b".py" not in first, "it names no file of this machine"


@networks
@pytest.mark.parametrize("kind", [lambda n: n, DenseNet.frozen], ids=["modules", "frozen"])
@pytest.mark.slow
def test_torch_export_takes_other_batches_and_sizes(options, kind):
    """Sizes that are halved without a rest: PyTorch 2.11 exports one kind or the other."""
    network = kind(trained(**options))
    [example, *others] = images(network, (2, 40, 40), (1, 40, 40), (5, 48, 64))
    free = {0: torch.export.Dim("batch"), **dict.fromkeys((2, 3), torch.export.Dim.AUTO)}
    with torch.no_grad():
        exported = torch.export.export(network, (example,), dynamic_shapes=(free,)).module()
        for x in (example, *others):
            require_same(exported(x), network(x))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    class Graph(list):
        metadata_props: ClassVar[dict] = {}

    def save(path):
        path.write_text("half")
        raise OSError("No space left on device")

    program = SimpleNamespace(model=SimpleNamespace(graph=Graph()), save=save)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    path = tmp_path / "network.onnx"
    path.write_text("old")
    with pytest.raises(OSError, match="No space"):
        to_onnx(trained(), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def hooked() -> DenseNet:
    network = trained()
    network.blocks[0].register_forward_hook(lambda *_: None)
    return network


def any_stem() -> DenseNet:
    network = trained()
    network.stem = nn.Sequential(nn.Identity(), network.stem)
    return network


@pytest.mark.parametrize(
    ("network", "name", "size", "error", "says"),
    [
        (
            hooked(),
            "n.onnx",
            None,
            ValueError,
            "network must be a DenseNet as built, but blocks.0 has",
        ),
        (
            nn.Linear(2, 2),
            "n.onnx",
            None,
            ValueError,
            "network must be a DenseNet as built, but it is a Linear",
        ),
        (any_stem(), "n.onnx", None, ValueError, "network must have a stem that begins with"),
        (trained(), "n.onnx", 1, ValueError, "size must be an integer of at least 2, got 1"),
        (trained(), "n.onnx", (8, 1), ValueError, "size must be an integer of at least 2, got 1"),
        (
            trained(),
            "n.onnx",
            (8, 8, 8),
            ValueError,
            "size must be an integer of at least 2, got (8, 8, 8)",
        ),
        (trained(), "none/n.onnx", None, FileNotFoundError, "path must be in a folder that exists"),
        (trained(), "", None, ValueError, "path must be a file's"),
    ],
)
def test_it_refuses_in_one_line(network, name, size, error, says, tmp_path, no_exporter):
    with pytest.raises(error) as caught:
        to_onnx(network, tmp_path / name, size)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_it_says_what_is_not_installed(missing, tmp_path, monkeypatch, no_exporter):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError) as caught:
        to_onnx(trained(), tmp_path / "network.onnx")
    expected = f"{missing} is not installed: bring it with pip install {missing}"
    assert str(caught.value) == expected
