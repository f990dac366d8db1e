"""The benchmarks run from end to end, on small cases; what they measure is not judged here."""

import functools
import importlib.util
import json
import sys
from types import ModuleType

import pytest
import torch
from helpers import ROOT


def load(name: str) -> ModuleType:
    """Return a benchmark as a module, which finds what stands beside it as the command would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return _load(name)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    module.main()


@pytest.mark.slow
def test_memory(monkeypatch, tmp_path, capsys):
    memory = load("memory")
    cases = {"small": (4, (3, 2), 8, 32, (2, 2)), "large": (4, (3, 2), 8, 64, (2, 2))}
    monkeypatch.setattr(memory, "CASES", cases)
    arguments = ("--rounds", "1", "--device", "cpu", "--out", str(tmp_path))
    run(memory, monkeypatch, "--cases", "small", "large", *arguments)
    assert "ours, shared-recompute" in capsys.readouterr().out
    results = json.loads((tmp_path / "memory.json").read_text())["results"]
    assert [result["case"] for result in results] == ["small", "large"]
    for result in results:
        found = result["results"]
        assert found["torchvision"]["stored in dense blocks"] == pytest.approx(
            found["ours, False"]["stored in dense blocks"]
        ), "the same network stores the same"
        assert found["ours, shared-recompute"]["stored"] < found["ours, checkpoint"]["stored"]
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--cases", "densenet"), "--cases[0] must be one of"),
        (("--rounds", "0"), "--rounds must be"),
        (("--batch", "1"), "--batch must be"),
    ],
)
def test_memory_refuses(arguments, says, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(load("memory"), monkeypatch, *arguments)
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_inference(monkeypatch, tmp_path, capsys):
    """Where one runtime is not installed, all others are measured, and it is said."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    run(load("inference"), monkeypatch, "--small", "--device", "cpu", "--out", str(tmp_path))
    printed = capsys.readouterr().out
    assert "ours, ONNX Runtime" in printed and "openvino is not installed" in printed
    found = json.loads((tmp_path / "inference.json").read_text())
    assert found["command"].startswith("python benchmarks/") and "torch" in found["versions"]
    [result] = found["results"]
    assert list(result["left out"]) == ["torchvision, OpenVINO", "ours, OpenVINO"]
    names = ["torchvision", "torchvision, channels last", "timm, channels last"]
    names += ["torchvision, compiled", "ours, modules", "ours, frozen"]
    names += ["ours, frozen and compiled", "torchvision, ONNX Runtime", "ours, ONNX Runtime"]
    assert list(result["ratio"]) == list(result["milliseconds"]) == names
    assert result["ratio"][result["unit"]] == 1 and result["unit"] in names[:2]
    page = (tmp_path / "inference.md").read_text()
    assert all(
        f"| {name} " in page and f"{name} {result['ratio'][name]:.2f}" in page for name in names
    )
    assert "](inference.png)" in page
    assert (tmp_path / "inference.png").read_bytes().startswith(b"\x89PNG")


def test_inference_stops_where_a_peer_computes_something_else():
    inference = load("inference")
    networks, images = inference.networks(*inference.SMALL), torch.randn(1, 3, 64, 64)
    ways = {name: functools.partial(inference.eager, part) for name, part in networks.items()}
    with torch.no_grad():
        runs, left_out = inference.prepare(ways, images)
        assert list(runs) == ["torchvision", "timm", "ours"] and not left_out
        networks["timm"].classifier.bias += 1e-2
        with pytest.raises(AssertionError, match="timm"):
            inference.prepare(ways, images)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--batches", "0"), "--batches[0] must be"),
        (("--size", "28"), "--size must be"),
        (("--rounds", "0"), "--rounds must be"),
        (("--threads", "0"), "--threads must be"),
        (("--device", "tpu"), "device must be"),
    ],
)
def test_inference_refuses(arguments, says, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(load("inference"), monkeypatch, *arguments)
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_data(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run(load("data"), monkeypatch, "--images", "70", "--rounds", "1")
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1 + 7
    [reference] = [line for line in lines if line.startswith("v2, files, 0 workers")]
    assert reference.endswith(" 1.00")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--images", "1"), "--images must be"), (("--rounds", "0"), "--rounds must be")],
)
def test_data_refuses(arguments, says, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(load("data"), monkeypatch, *arguments)
    assert says in capsys.readouterr().err
