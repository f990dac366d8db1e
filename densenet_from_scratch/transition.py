"""Transitions: fewer and smaller feature maps between two dense blocks (chapter 6)."""

from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.arguments import check_count, check_fraction


class Transition(nn.Module):
    """BN-ReLU-conv1×1 to ⌊θm⌋ maps, then 2×2 average pooling.

    Huang et al. (2017), section 3, "Pooling layers" and "Compression"; BN-ReLU comes first as in
    the authors' own code and torchvision's.

    Args:
        in_channels: maps that enter, m.
        compression: θ, the share of the maps that leaves; 1 keeps them all.

    Raises:
        ValueError: ``in_channels`` is not positive, ``compression`` is not in (0, 1], or no map
            would be left.
    """

    def __init__(self, in_channels: int, compression: float = 0.5) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_fraction("compression", compression)
        self.out_channels = int(in_channels * compression)
        if self.out_channels < 1:
            raise ValueError(
                f"compression must leave at least one of {in_channels} maps, got {compression!r}"
            )
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, self.out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, m, H, W) to (N, ⌊θm⌋, ⌊H/2⌋, ⌊W/2⌋)."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), kernel_size=2)
