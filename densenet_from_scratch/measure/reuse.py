"""Which layer reads which, and how much of its weight it gives to it (chapters 3 and 9)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.arguments import check_count


def connections(maps: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """List which maps were computed directly from which others, by walking autograd's graph.

    From each tensor the walk follows the graph towards the inputs and stops at the first of the
    other tensors on each path.

    Args:
        maps: named tensors of one computation, such as the x_0, ..., x_L of a block. A tensor that
            nothing was computed from needs ``requires_grad``.

    Returns:
        Pairs (source, target), one a connection, by target and then source in the order given.

    Raises:
        ValueError: a tensor is not part of a graph.
    """
    names: dict[Any, str] = {}
    for name, tensor in maps.items():
        if not tensor.requires_grad:
            raise ValueError(f"maps[{name!r}] must be part of an autograd graph, but is not")
        names[torch.autograd.graph.get_gradient_edge(tensor).node] = name
    order = list(maps)
    pairs = []
    for node, target in names.items():
        sources, seen, to_visit = set(), set(), [parent for parent, _ in node.next_functions]
        while to_visit:
            current = to_visit.pop()
            if current is None or current in seen:
                continue
            seen.add(current)
            if current in names:
                sources.add(names[current])
            else:
                to_visit.extend(parent for parent, _ in current.next_functions)
        pairs += [(source, target) for source in sorted(sources, key=order.index)]
    return pairs


def strength_by_source(
    weight: Tensor, widths: Sequence[int], gamma: Tensor | None = None
) -> Tensor:
    """Return the mean absolute weight that a layer gives to the maps of each source.

    Huang et al. (2017), section 5, "Feature Reuse": a stand-in for how much the layer depends on
    that source.

    Args:
        weight: of a convolution (out, in, height, width) or linear layer (out, in) whose inputs are
            maps of several sources, side by side.
        widths: how many maps each source has, in their order.
        gamma: the factors γ (in,) of a BatchNorm before the layer, by which each map's weights are
            multiplied: the BatchNorm and the layer together scale a map by both.

    Returns:
        The means, shape (sources,).

    Raises:
        ValueError: the widths are no positive integers or do not add up to the layer's inputs, or
            ``weight`` or ``gamma`` has another shape.
    """
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        given = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight must be a tensor (out, in) or (out, in, H, W), got {given}")
    for source, width in enumerate(widths):
        check_count(f"widths[{source}]", width)
    if sum(widths) != weight.shape[1]:
        raise ValueError(
            f"widths must add up to the layer's {weight.shape[1]} inputs, got {list(widths)}"
        )
    if gamma is not None and (
        not isinstance(gamma, Tensor) or tuple(gamma.shape) != (weight.shape[1],)
    ):
        given = tuple(gamma.shape) if isinstance(gamma, Tensor) else type(gamma).__name__
        raise ValueError(f"gamma must be a tensor ({weight.shape[1]},), got {given}")
    by_map = weight.detach().abs().transpose(0, 1).flatten(1).mean(dim=1)  # (in,)
    if gamma is not None:
        by_map = by_map * gamma.detach().abs()
    return torch.stack([maps.mean() for maps in by_map.split(list(widths))])


def connection_strengths(network: nn.Module, gamma: bool = False) -> list[Tensor]:
    """Return how strongly each layer of a DenseNet weighs each source, a matrix for each block.

    Huang et al. (2017), figure 5. A block of L layers has L + 1 sources, its input x_0 and its
    layers, and L + 1 readers, its layers and what follows the block: a transition, or the
    classifier.

    Args:
        network: a :class:`~densenet_from_scratch.DenseNet`.
        gamma: multiply each weight by the |γ| of the BatchNorm before it.

    Returns:
        A matrix (L + 1, L + 1) for each block. Row s and column t hold
        :func:`strength_by_source` of source x_s for reader t + 1; NaN where that reads no x_s.

    Raises:
        ValueError: ``network`` is no DenseNet, or one whose layers are no longer convolutions (or
            a linear classifier) after BatchNorms.
    """
    parts: Any = network
    if not all(hasattr(parts, name) for name in ("blocks", "transitions", "norm", "classifier")):
        raise ValueError(f"network must be a DenseNet, got a {type(network).__name__}")
    exits = [(transition.norm, transition.conv) for transition in parts.transitions]
    exits.append((parts.norm, parts.classifier))
    matrices = []
    for block, exit_ in zip(parts.blocks, exits, strict=True):
        readers = [(layer.norm1, layer.conv1) for layer in block.layers] + [exit_]
        for norm, reader in readers:
            _check_pair(norm, reader, gamma)
        inputs = [reader.weight.shape[1] for _, reader in readers]
        widths = [inputs[0], *(after - before for before, after in pairwise(inputs))]
        if min(widths) < 1:
            raise ValueError(
                "network must be a DenseNet, each of whose layers reads more maps than the one "
                f"before, got a block whose layers, and what follows it, read {inputs}"
            )
        matrix = torch.full((len(readers), len(readers)), torch.nan)
        for column, (norm, reader) in enumerate(readers):
            matrix[: column + 1, column] = strength_by_source(
                reader.weight, widths[: column + 1], norm.weight if gamma else None
            )
        matrices.append(matrix)
    return matrices


def _check_pair(norm: nn.Module, reader: nn.Module, gamma: bool) -> None:
    """Refuse what has no weights to weigh, or no γ where it is asked for."""
    if not isinstance(reader, nn.Conv2d | nn.Linear):
        raise ValueError(
            "network must be a DenseNet whose readers are convolutions and a linear classifier, "
            f"got one with a {type(reader).__name__}"
        )
    if gamma and not isinstance(getattr(norm, "weight", None), Tensor):
        raise ValueError(
            f"gamma must be False where a norm has no γ, got {gamma!r} and a {type(norm).__name__}"
        )
