"""DenseNet from scratch: the finished form of what the chapters of the course build.

Most modules mirror a chapter, which their first line names; ``tests/test_package.py`` lists which
stands above which. DenseNet, VoVNet, the small networks of chapters 1 and 2 and ``load_data`` are
exported here; all else is imported from its module, such as ``measure``, ``train`` or, for the
ResNet of chapter 8, ``residual``. What the course adds, figures and checks of exercises, is in
``course``, which the library never imports.
"""

from densenet_from_scratch.data import load_data
from densenet_from_scratch.dense import BottleneckLayer, DenseBlock, DenseLayer
from densenet_from_scratch.frozen import FrozenDenseNet
from densenet_from_scratch.model import (
    DenseNet,
    densenet121,
    densenet161,
    densenet169,
    densenet201,
    densenet264,
    densenet_cifar,
)
from densenet_from_scratch.osa import OSAModule, VoVNet, vovnet27_slim, vovnet39, vovnet57
from densenet_from_scratch.plain import PlainLayer, PlainNet
from densenet_from_scratch.residual import ResidualLayer, ResidualNet
from densenet_from_scratch.torchvision_weights import from_torchvision, to_torchvision
from densenet_from_scratch.transition import Transition

__version__ = "0.1.0"

__all__ = [
    "BottleneckLayer",
    "DenseBlock",
    "DenseLayer",
    "DenseNet",
    "FrozenDenseNet",
    "OSAModule",
    "PlainLayer",
    "PlainNet",
    "ResidualLayer",
    "ResidualNet",
    "Transition",
    "VoVNet",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "densenet264",
    "densenet_cifar",
    "from_torchvision",
    "load_data",
    "to_torchvision",
    "vovnet27_slim",
    "vovnet39",
    "vovnet57",
]
