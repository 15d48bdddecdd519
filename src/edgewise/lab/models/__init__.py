"""Networks by name."""

from torch import nn

from edgewise.lab import plugins
from edgewise.lab.configs import ModelConfig
from edgewise.lab.data import Dataset
from edgewise.lab.models.cnn import CNN
from edgewise.lab.models.fcn import FCN
from edgewise.lab.models.lm import LM
from edgewise.lab.models.wrn import WRN

__all__ = ["CNN", "FCN", "LM", "WRN", "build"]


def build(config: ModelConfig, dataset: Dataset) -> nn.Module:
    """Return the network that the config names, sized for the data, initialised from torch's generator."""
    if config.name in plugins.MODELS:
        return plugins.MODELS[config.name](config, dataset)
    size = {"depth": config.depth, "width": config.width}
    match config.name:
        case "fcn":
            return FCN(
                num_features=dataset.num_features,
                num_classes=dataset.num_classes,
                parameterization=config.parameterization,
                **size,
            )
        case "cnn":
            assert dataset.image_shape is not None  # by MODEL_DATA
            return CNN(image_shape=dataset.image_shape, num_classes=dataset.num_classes, **size)
        case "wrn":
            assert dataset.image_shape is not None  # by MODEL_DATA
            return WRN(
                image_shape=dataset.image_shape,
                num_classes=dataset.num_classes,
                parameterization=config.parameterization,
                **size,
            )
        case "lm":
            return LM(
                vocabulary=dataset.num_classes,
                context=dataset.num_features,
                parameterization=config.parameterization,
                norm=config.norm,
                final_norm=config.final_norm,
                **size,
            )
        case name:
            raise AssertionError(name)
