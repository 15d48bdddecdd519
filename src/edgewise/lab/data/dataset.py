"""What every data set looks like to training."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgewise.lab.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples along the first dimension; a text sample has one class a position."""

    train_inputs: Tensor  # (N, features) float32, or (N, context) integers
    train_targets: Tensor  # (N,) or (N, context), integers
    test_inputs: Tensor
    test_targets: Tensor
    num_classes: int
    image_shape: tuple[int, int, int] | None = None  # channels, height, width, whose product is the features

    @classmethod
    def of_tokens(cls, train: Tensor, test: Tensor, *, vocabulary: int) -> "Dataset":
        """Return the data set of (N, context + 1) tokens, each of which but the first is to be predicted."""
        return cls(
            train_inputs=train[:, :-1],
            train_targets=train[:, 1:],
            test_inputs=test[:, :-1],
            test_targets=test[:, 1:],
            num_classes=vocabulary,
        )

    @property
    def num_features(self) -> int:
        """Entries of one input."""
        return self.train_inputs.shape[1]

    def to(self, device: torch.device) -> "Dataset":
        """Return the data set with its tensors on a device."""
        names = ("train_inputs", "train_targets", "test_inputs", "test_targets")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def first(self, number: int) -> "Dataset":
        """Return the data set with the first so many training samples.

        Raises:
            DataError: there are fewer.
        """
        if number > len(self.train_inputs):
            raise DataError(
                f"num_samples must be at most {len(self.train_inputs)}, the training samples, got {number}."
            )
        return replace(
            self, train_inputs=self.train_inputs[:number], train_targets=self.train_targets[:number]
        )

    def train_batch(self, indices: Tensor | slice | None = None) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the given training samples, of all by default."""
        if indices is None:
            return _usable(self.train_inputs), self.train_targets.long()
        return _usable(self.train_inputs[indices]), self.train_targets[indices].long()

    def test_batch(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of all test samples."""
        return _usable(self.test_inputs), self.test_targets.long()


def spread(number: int, there: int) -> Tensor:
    """Return the indices of so many samples, evenly over all there are; of all, if there are no more."""
    return torch.linspace(0, there - 1, min(number, there)).long()


def _usable(inputs: Tensor) -> Tensor:
    """Return tokens, stored as small integers, as those that an embedding takes."""
    return inputs if inputs.is_floating_point() else inputs.long()
