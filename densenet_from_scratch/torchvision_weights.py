"""The same weights under torchvision's names (chapter 7)."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor


def to_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a :class:`DenseNet`'s weights to torchvision's keys; the tensors are shared.

    Raises:
        ValueError: ``state_dict`` is no mapping of names.
    """
    _check_weights(state_dict)
    rules = (
        (r"^stem\.(conv|norm)\.", r"features.\g<1>0."),
        (
            r"^blocks\.(\d+)\.layers\.(\d+)\.",
            lambda m: f"features.denseblock{int(m[1]) + 1}.denselayer{int(m[2]) + 1}.",
        ),
        (r"^transitions\.(\d+)\.", lambda m: f"features.transition{int(m[1]) + 1}."),
        (r"^norm\.", "features.norm5."),
    )
    return {_rename(key, rules): value for key, value in state_dict.items()}


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a torchvision DenseNet for :meth:`DenseNet.load_state_dict`.

    The downloadable files still spell ``norm.1`` for what the class calls ``norm1``; both work.
    The tensors are shared.

    Raises:
        ValueError: ``state_dict`` is no mapping of names.
    """
    _check_weights(state_dict)
    rules = (
        (r"\.(norm|conv)\.([12])\.", r".\1\2."),
        (r"^features\.(conv|norm)0\.", r"stem.\1."),
        (
            r"^features\.denseblock(\d+)\.denselayer(\d+)\.",
            lambda m: f"blocks.{int(m[1]) - 1}.layers.{int(m[2]) - 1}.",
        ),
        (r"^features\.transition(\d+)\.", lambda m: f"transitions.{int(m[1]) - 1}."),
        (r"^features\.norm5\.", "norm."),
    )
    return {_rename(key, rules): value for key, value in state_dict.items()}


def _check_weights(state_dict: Mapping[str, Tensor]) -> None:
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise ValueError(
            f"state_dict must map names to tensors, as network.state_dict() does, got a {kind}"
        )
    for key in state_dict:
        if not isinstance(key, str):
            raise ValueError(f"state_dict must map names to tensors, got the key {key!r}")


def _rename(key: str, rules: Sequence[tuple]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key
