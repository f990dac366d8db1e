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
    """Every way is measured, beside torchvision's network compiled within several budgets."""
    memory = load("memory")
    monkeypatch.setattr(memory, "COMPILER", "aot_eager_decomp_partition")  # makes no C++
    cases = {"small": memory.NETWORKS["small"], "large": (4, (3, 2), 8, 64, (2, 2))}
    monkeypatch.setattr(memory, "NETWORKS", cases)
    arguments = ("--rounds", "1", "--device", "cpu", "--out", str(tmp_path))
    run(memory, monkeypatch, "--network", "small", "large", *arguments)
    printed, page = capsys.readouterr().out, (tmp_path / "memory.md").read_text()
    found = json.loads((tmp_path / "memory.json").read_text())
    assert found["command"].startswith("python benchmarks/") and "torchvision" in found["versions"]
    assert [result["network"] for result in found["results"]] == ["small", "large"]
    theirs = ["torchvision", "torchvision, memory_efficient"]
    compiled = [f"torchvision, compiled{limit}" for limit in ("", ", budget 0.5", ", budget 0.1")]
    for result in found["results"]:
        rows = result["found"]
        assert list(rows) == theirs + compiled + [f"ours, {way}" for way in memory.WAYS]
        assert not result["left out"]
        assert set(rows["torchvision"]["ratio"].values()) == {1}
        assert rows["torchvision"]["stored"] == rows["ours, False"]["stored"], "the same network"
        free, half, tenth = (rows[name]["stored"] for name in compiled)
        assert free > half > tenth, "each is compiled within its own budget"
        assert rows["ours, shared-recompute"]["stored"] < rows["ours, checkpoint"]["stored"]
        for name, row in rows.items():
            assert (row["compile seconds"] is not None) == (name in compiled)
            assert f"| {name} " in printed and f"| {name} " in page
            assert f"{name} {row['ratio']['stored']:.2f}, {row['ratio']['peak']:.2f} and" in page
    assert "](memory.png)" in page
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_memory_says_what_did_not_run(monkeypatch, tmp_path, capsys):
    """Without a compiler all others are measured; --small does not ask for one."""
    memory = load("memory")
    monkeypatch.setattr(memory, "COMPILER", "none such")
    arguments = ("--device", "cpu", "--out", str(tmp_path))
    run(memory, monkeypatch, "--network", "small", "--rounds", "1", *arguments)
    assert "none such" in capsys.readouterr().out
    [missing] = json.loads((tmp_path / "memory.json").read_text())["results"]
    run(memory, monkeypatch, "--small", *arguments)
    [small] = json.loads((tmp_path / "memory.json").read_text())["results"]
    assert len(missing["left out"]) == 3 and not small["left out"]
    assert missing["found"].keys() == small["found"].keys()


@pytest.mark.parametrize("wrong", ["outputs", "gradients"])
def test_memory_stops_where_a_way_computes_something_else(wrong):
    memory = load("memory")
    networks = memory.networks_of("small", compile_too=False)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    steps, seconds, left_out = memory.prepare(networks, images, labels)
    assert steps.keys() == networks.keys() and not seconds and not left_out
    weight = networks["ours, shared"].classifier.weight
    if wrong == "outputs":
        weight.data *= 1.01
    else:
        weight.register_hook(lambda gradient: 1.1 * gradient)
    with pytest.raises(AssertionError, match=f"ours, shared: {wrong} differ"):
        memory.prepare(networks, images, labels)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--network", "densenet"), "--network[0] must be one of"),
        (("--rounds", "0"), "--rounds must be"),
        (("--batches", "2", "1"), "--batches[1] must be"),
        (("--threads", "0"), "--threads must be"),
        (("--device", "tpu"), "device must be"),
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
