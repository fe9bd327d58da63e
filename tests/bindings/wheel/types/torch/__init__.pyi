"""As much of PyTorch as the package's public names show: reading all of it takes half a minute."""

from torch import distributed as distributed, nn as nn

class Tensor:
    def __add__(self, other: Tensor) -> Tensor: ...
