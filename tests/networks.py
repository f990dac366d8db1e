"""What several test modules do with networks. It needs PyTorch alone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def on_meta(make: Callable[..., nn.Module], *arguments, **options) -> nn.Module:
    """Build a network without drawing its weights: its sizes are all that is looked at."""
    with torch.device("meta"):
        return make(*arguments, **options)


def draw_norms(module: nn.Module) -> None:
    """Draw statistics and scales of all norms: fresh ones would hide mistakes."""
    for name, value in module.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.uniform_(0.5, 2.0)


def norms_of(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]


def cumulative_average(network: nn.Module) -> None:
    """Let running statistics be the mean of all batches."""
    for norm in norms_of(network):
        norm.momentum = None


def bn_relu(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch normalisation with the batch's own statistics, then ReLU."""
    return F.relu(F.batch_norm(x, None, None, norm.weight, norm.bias, training=True))


def outcome(network: nn.Module, images: Tensor, rename=lambda weights: weights) -> dict:
    """Logits, gradients and running statistics of one pass forth and back, under our names."""
    torch.manual_seed(1)  # dropout
    images = images.clone().requires_grad_()
    logits = network(images)
    F.cross_entropy(logits, torch.arange(len(images))).backward()
    gradients = rename({name: p.grad for name, p in network.named_parameters()})
    return {
        "logits": logits.detach(),
        "images": images.grad,
        **{f"gradient of {name}": gradient for name, gradient in gradients.items()},
        **rename(dict(network.named_buffers())),
    }
