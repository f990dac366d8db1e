"""The benchmarks run from end to end, on small cases; what they measure is not judged here."""

import importlib.util
import json
import sys
from types import ModuleType

import pytest
import torch
from helpers import ROOT


def load(name: str) -> ModuleType:
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
    arguments = ("--batches", "1", "2", "--size", "32", "--rounds", "1", "--device", "cpu")
    run(load("inference"), monkeypatch, *arguments, "--out", str(tmp_path))
    assert "ours, frozen" in capsys.readouterr().out
    results = json.loads((tmp_path / "inference.json").read_text())["results"]
    formats = ("contiguous", "channels last")
    assert [(r["batch"], r["format"]) for r in results] == [(b, f) for b in (1, 2) for f in formats]
    for result in results:
        assert list(result["ratio to torchvision"]) == [
            "torchvision",
            "timm",
            "ours",
            "ours, frozen",
        ]
        assert result["ratio to torchvision"]["torchvision"] == 1
        same = [r for r in results if r["batch"] == result["batch"]]
        best = min(r["ratio to torchvision's best format"]["torchvision"] for r in same)
        assert best == 1
    assert (tmp_path / "inference.png").read_bytes().startswith(b"\x89PNG")


def test_inference_stops_where_a_peer_computes_something_else():
    inference = load("inference")
    networks = inference.peers()
    inference.check(networks)
    assert {p.dtype for n in networks.values() for p in n.parameters()} == {torch.float32}
    with torch.no_grad():
        networks["timm"].classifier.bias += 1e-3
        with pytest.raises(AssertionError, match="timm"):
            inference.check(networks)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--batches", "0"), "--batches[0] must be"),
        (("--size", "28"), "--size must be"),
        (("--rounds", "0"), "--rounds must be"),
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
