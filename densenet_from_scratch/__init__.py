"""DenseNet from scratch: the finished form of what the chapters of the course build.

Each module mirrors a chapter and imports only from earlier ones. The networks and the data are
exported here; what works on them is imported from its module, ``measure`` or ``train``. What the
course adds, figures and checks of exercises, is in ``course``, which the library never imports.
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
