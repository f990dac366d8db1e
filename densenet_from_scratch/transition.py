"""Transitions: fewer and smaller feature maps between two dense blocks (chapter 6)."""

from fractions import Fraction

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
        drop_rate: share of the convolution's output that dropout sets to zero in training. The
            paper drops out after each convolution but the first (section 4.2); torchvision does not
            drop out here.

    Raises:
        ValueError: ``in_channels`` is not positive, ``compression`` is not in (0, 1], no map would
            be left, or ``drop_rate`` is not in [0, 1).
    """

    def __init__(self, in_channels: int, compression: float = 0.5, drop_rate: float = 0.0) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_fraction("compression", compression)
        # As a fraction: in floating point, ⌊0.7 · 90⌋ would be 62.
        theta = Fraction(float(compression)).limit_denominator(10**6)
        self.out_channels = int(in_channels * theta)
        if self.out_channels < 1:
            raise ValueError(
                f"compression must leave at least one of {in_channels} maps, got {compression!r}"
            )
        self.drop_rate = check_fraction("drop_rate", drop_rate, zero=True, one=False)
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, self.out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, m, H, W) to (N, ⌊θm⌋, ⌊H/2⌋, ⌊W/2⌋)."""
        x = self.conv(F.relu(self.norm(x)))
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return F.avg_pool2d(x, kernel_size=2)

    # From here on, what a dense.Reader has besides norm and forward.

    pool_size = 2

    @property
    def pools_first(self) -> bool:
        """Whether pooling before the convolution gives the same: both are sums, dropout is not."""
        return not (self.drop_rate and self.training)

    def after_pooling(self, pooled: Tensor) -> Tensor:
        """Map pooled maps (N, m, ⌊H/2⌋, ⌊W/2⌋) to (N, ⌊θm⌋, ⌊H/2⌋, ⌊W/2⌋)."""
        return self.conv(pooled)
