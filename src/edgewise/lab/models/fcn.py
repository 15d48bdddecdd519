"""FCN-d-n: a fully connected network with d hidden layers of width n and ReLU."""

from torch import nn

from edgewise.lab.models.parameterization import Role, ScaledLinear


class FCN(nn.Sequential):
    """(batch, num_features) → (batch, num_classes)."""

    def __init__(
        self, *, num_features: int, num_classes: int, depth: int, width: int, parameterization: str
    ) -> None:
        layers: list[nn.Module] = []
        fan_in = num_features
        for i in range(depth):
            role: Role = "input" if i == 0 else "hidden"
            layers += [ScaledLinear(fan_in, width, role=role, parameterization=parameterization), nn.ReLU()]
            fan_in = width
        layers.append(ScaledLinear(fan_in, num_classes, role="last", parameterization=parameterization))
        super().__init__(*layers)
