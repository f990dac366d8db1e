"""A frozen copy is faster and gives what the modules give; the network itself runs its modules."""

import copy
import pickle
import types

import pytest
import torch
import torch.fx.experimental.proxy_tensor
import torchvision
from networks import draw_norms
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from densenet_from_scratch import (
    DenseNet,
    FrozenDenseNet,
    densenet121,
    from_torchvision,
)
from densenet_from_scratch import frozen as module
from densenet_from_scratch.kernels import layout

NETWORKS = {
    "small images": {},
    "ImageNet": {"small_inputs": False},
    "basic layers": {"bottleneck": False, "compression": 1.0},
    "one block": {"block_config": (3,)},
    "dropout": {"drop_rate": 0.3},
}


def trained(**options) -> DenseNet:
    """A network whose norms all differ from fresh ones, in evaluation."""
    torch.manual_seed(0)
    options = {"growth_rate": 3, "block_config": (2, 3), "num_init_features": 5} | options
    network = DenseNet(**options).double()
    draw_norms(network)
    return network.eval()


def images(count: int = 2, channels: int = 3) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, channels, 13, 11, dtype=torch.float64)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 3])
def test_it_gives_what_the_modules_give(options, memory_format, count):
    network = trained(**options).to(memory_format=memory_format)
    x = images(count).contiguous(memory_format=memory_format)
    expected = network(x).detach()
    frozen = network.train().frozen()
    assert network.training, "the original is left alone"
    for _ in range(2):
        logits = frozen(x.clone().requires_grad_())
        assert not logits.requires_grad and not logits.is_inference()
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frozen.train()(x), expected, rtol=1e-12, atol=1e-12)
    assert not any(part.training for part in frozen.modules())


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_its_plain_operations_give_the_same(options, monkeypatch):
    network, x = trained(**options), images()
    frozen = network.frozen()
    expected = network(x).detach()
    monkeypatch.setattr(module, "why_not_round", lambda x: "for this test")
    monkeypatch.setattr(FrozenDenseNet, "_run", None)
    torch.testing.assert_close(frozen(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("numbers", [1, 30, 100])
def test_the_size_of_the_pieces_changes_nothing(numbers, monkeypatch):
    network, x = trained(), images()
    monkeypatch.setattr(layout, "PIECE", numbers)
    monkeypatch.setattr(module, "PIECE", numbers)
    torch.testing.assert_close(network.frozen()(x), network(x), rtol=1e-12, atol=1e-12)


def test_norms_may_differ_in_eps():
    network = trained()
    network.blocks[0].layers[1].norm2.eps = 0.1
    network.transitions[0].norm.eps = 0.2
    torch.testing.assert_close(network.frozen()(images()), network(images()))


def test_it_gives_what_torchvision_gives():
    torch.manual_seed(0)
    theirs = torchvision.models.densenet121(num_classes=10).double().eval()
    for name, value in theirs.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.uniform_(0.5, 1.5)
    ours = densenet121(num_classes=10).double().eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    x = torch.randn(1, 3, 65, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.frozen()(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_the_network_itself_runs_its_modules(options):
    """In evaluation without gradients, too: every module is called, once."""
    network = trained(**options)
    seen: dict[str, int] = {}
    for name, part in network.named_modules():

        def note(*_, name=name):
            seen[name] = seen.get(name, 0) + 1

        part.forward = types.MethodType(
            lambda self, *a, own=part.forward, note=note: (note(), own(*a))[1], part
        )
    with torch.no_grad():
        network(images())
    lists = {name for name, part in network.named_modules() if isinstance(part, nn.ModuleList)}
    every = {name for name, _ in network.named_modules()} - lists
    assert seen == dict.fromkeys(every, 1)


# --- Its tensors are its own, and all it has -----------------------------------------------------


def test_later_changes_of_the_original_are_not_seen():
    network, x = trained(), images()
    frozen, expected = network.frozen(), network(x).detach()
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data.add_(1)
    torch.testing.assert_close(frozen(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("small_inputs", [True, False])
def test_every_one_of_its_tensors_counts(small_inputs):
    """Changed in place, in whatever way, it computes with the new value: nothing is stale."""
    frozen, x = trained(small_inputs=small_inputs).frozen(), images()
    for name, parameter in frozen.named_parameters():
        before, value = frozen(x), parameter.detach().clone()
        parameter.data.mul_(1.5).add_(0.1)
        assert not torch.allclose(frozen(x), before, rtol=1e-9), name
        parameter.data.copy_(value)
        torch.testing.assert_close(frozen(x), before, rtol=0, atol=0)
    assert not list(frozen.buffers())


def test_weights_are_loaded_on_every_way():
    torch.manual_seed(5)
    networks = [trained(), trained()]
    networks[1].blocks[0].layers[0].norm2.weight.data.mul_(2)
    networks[1].blocks[1].layers[1].conv2.weight.data.neg_()
    x, expected = images(), networks[1](images()).detach()

    def holder(network: DenseNet) -> nn.Module:
        return nn.Sequential(network.frozen(), nn.Identity())

    frozen = networks[0].frozen()
    frozen.load_state_dict(networks[1].frozen().state_dict())
    outer = holder(networks[0])
    outer.load_state_dict(holder(networks[1]).state_dict())
    assigned = networks[0].frozen()
    assigned.load_state_dict(networks[1].frozen().state_dict(), assign=True)
    called = torch.func.functional_call(
        networks[0].frozen(), dict(networks[1].frozen().named_parameters()), (x,)
    )
    copies = (copy.deepcopy(frozen)(x), pickle.loads(pickle.dumps(frozen))(x))
    for logits in (frozen(x), outer(x), assigned(x), called, *copies):
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="Missing key"):
        frozen.load_state_dict(networks[1].state_dict())


def test_it_moves_and_changes_its_type_as_modules_do():
    network, x = trained(), images()
    expected = network(x).detach()
    frozen = network.frozen().float()
    torch.testing.assert_close(frozen(x.float()), expected.float())
    assert next(frozen.parameters()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert frozen(x.float()).dtype == torch.float32
        frozen.blocks[0].register_forward_hook(lambda *_: None)  # so the operations are plain
        torch.testing.assert_close(frozen(x.float()), expected.float())
    half = network.frozen().bfloat16()(x.bfloat16())
    torch.testing.assert_close(half.double(), expected, rtol=0.1, atol=0.1)
    with pytest.raises(RuntimeError, match="type"):
        frozen(x)


def test_no_images_give_no_logits():
    assert trained().frozen()(images()[:0]).shape == (0, 10)


def test_freezing_draws_no_random_numbers():
    network = trained(small_inputs=False)
    state = torch.get_rng_state()
    network.frozen()
    assert torch.equal(torch.get_rng_state(), state)


# --- Whatever traces, maps or counts -------------------------------------------------------------


def test_an_ensemble_runs_under_vmap():
    """Several networks as one, as PyTorch's tutorial on ensembles does it."""
    x, networks = images(), [trained() for _ in range(2)]
    networks[1].classifier.bias.data.add_(1)
    for kind in (lambda n: n, DenseNet.frozen):
        models = [kind(network) for network in networks]
        stacked = torch.func.stack_module_state(models)

        def run(parameters, buffers, model=models[0]):
            return torch.func.functional_call(model, (parameters, buffers), (x,))

        with torch.no_grad():
            logits = torch.vmap(run)(*stacked)
            expected = torch.stack([network(x) for network in networks])
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own use of it
@pytest.mark.parametrize("kind", [lambda n: n, DenseNet.frozen], ids=["modules", "frozen"])
def test_derivatives_of_torch_func_are_right(kind):
    network, x, direction = kind(trained()), images(), torch.randn_like(images())
    step = 1e-6
    with torch.no_grad():
        difference = (network(x + step * direction) - network(x - step * direction)) / (2 * step)
    _, found = torch.func.jvp(network, (x,), (direction,))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(network(forward_ad.make_dual(x, direction))).tangent
    gradient = torch.func.grad(lambda image: network(image).sum())(x)
    torch.testing.assert_close(found, difference, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dual, found, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((gradient * direction).sum(), found.sum())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", [lambda n: n, DenseNet.frozen], ids=["modules", "frozen"])
@pytest.mark.parametrize("small_inputs", [True, False])
def test_traced_exported_and_compiled(kind, small_inputs):
    network = kind(trained(small_inputs=small_inputs))
    x, others = images(), images(5).flip(3)
    with torch.no_grad():
        traced = torch.jit.trace(network, x)
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(network, (x,), dynamic_shapes=({0: batch},)).module()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        symbolic = torch.fx.symbolic_trace(network)
        concrete = torch.fx.experimental.proxy_tensor.make_fx(network)(x)
        for run in (traced, exported, compiled, symbolic):
            for inputs in (x, others):
                torch.testing.assert_close(run(inputs), network(inputs), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(concrete(x.flip(2)), network(x.flip(2)), rtol=1e-12, atol=1e-12)


def test_a_counter_sees_the_frozen_copys_work():
    """Transitions do a quarter of the products, and nothing is hidden from the counter."""
    network = trained(block_config=(2, 2))
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    counts = []
    for model in (network, network.frozen()):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        counts.append(counter.get_total_flops() // 2)
    conv = network.transitions[0].conv
    assert counts[0] - counts[1] == conv.weight.numel() * (8 * 8 - 4 * 4)


def test_hooks_inside_a_frozen_copy_fire():
    frozen, seen = trained().frozen(), []
    for part in (frozen, frozen.blocks[0], frozen.blocks[1].layers[2], frozen.classifier):
        part.register_forward_hook(lambda *_: seen.append(1))
    frozen(images())
    assert len(seen) == 4


# --- What is not as built ------------------------------------------------------------------------


def another_pooling(stem: nn.Module) -> None:
    stem[3] = nn.AvgPool2d(3, stride=2, padding=1)


def a_hook(stem: nn.Module) -> None:
    stem.relu.register_forward_hook(lambda module, inputs, output: 2 * output)


def a_norm_without_affine(stem: nn.Module) -> None:
    stem.norm = nn.BatchNorm2d(5, affine=False).double().eval()


def group_norm(stem: nn.Module) -> None:
    stem.norm = nn.GroupNorm(5, 5).double()


@pytest.mark.parametrize("change", [another_pooling, a_hook, a_norm_without_affine, group_norm])
def test_a_changed_stem_runs_as_it_is(change):
    network = trained(small_inputs=False)
    change(network.stem)
    torch.testing.assert_close(network.frozen()(images()), network(images()))


@pytest.mark.parametrize("efficient", [False, True])
def test_a_changed_stem_trains_as_it_is(efficient):
    """Sync-BatchNorm and GroupNorm on the stem for ImageNet."""
    for norm in (nn.GroupNorm(5, 5), nn.SyncBatchNorm(5)):
        network = trained(small_inputs=False, efficient=efficient).train()
        network.stem.norm = norm.double()
        if isinstance(norm, nn.SyncBatchNorm):
            network.stem.norm.eval()  # in training it needs a GPU
        network(images()).sum().backward()
        assert network.stem.norm.weight.grad is not None


def test_a_frozen_network_refuses_what_it_cannot_run():
    network = trained()
    network.blocks[0].layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(
        ValueError, match=r"network must be a DenseNet .*blocks.0.layers.0 has a hook"
    ):
        FrozenDenseNet(network)
    with pytest.raises(ValueError, match=r"network must be a DenseNet .* it is a Linear"):
        FrozenDenseNet(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="x must"):
        FrozenDenseNet(trained())(torch.randn(1, 2, 8, 8, dtype=torch.float64))
    network = trained()
    network.norm.train()
    with pytest.raises(ValueError, match="norm is in training and the network in evaluation"):
        network.frozen()
