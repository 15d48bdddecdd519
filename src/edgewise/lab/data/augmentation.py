"""Random horizontal flips, crops and mixup, in this order; each batch from the generator it is given."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_PADDING = 4  # pixels around an image before it is cropped back to its size


def augment(
    inputs: Tensor,
    targets: Tensor,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Return the batch augmented.

    Args:
        inputs: (B, C·H·W).
        targets: (B,) classes.
        image_shape: C, H, W.
        num_classes: classes in all.
        generator: on the CPU.

    Returns:
        (B, C·H·W), and (B, num_classes): the shares of the classes in each mixed image.
    """
    images = crop(flip(inputs.unflatten(1, image_shape), generator), generator)
    return mixup(images.flatten(1), F.one_hot(targets, num_classes).float(), generator)


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Return (B, C, H, W) with each image mirrored with probability ½."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def crop(images: Tensor, generator: Generator) -> Tensor:
    """Return (B, C, H, W): each image surrounded by 4 zeros and cut out anew anywhere."""
    number, channels, height, width = images.shape
    padded = F.pad(images, (_PADDING,) * 4)
    top, left = torch.randint(2 * _PADDING + 1, (2, number), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]
    samples = torch.arange(number)[:, None, None, None]
    return padded[samples, torch.arange(channels)[None, :, None, None], rows, columns]


def mixup(inputs: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the batch mixed with a permutation of itself, in one share, uniform in [0, 1] (Zhang et al. 2018)."""
    share = torch.rand((), generator=generator)
    order = torch.randperm(len(inputs), generator=generator)
    return tuple(share * x + (1 - share) * x[order] for x in (inputs, targets))  # type: ignore[return-value]
