"""Flips, crops and mixup.

Oracle: each image compared with every mirror image and every cut it may be. Cannot see: whether it helps.
"""

import pytest
import torch
import torch.nn.functional as F

from edgewise.lab.configs import DataConfig
from edgewise.lab.data.augmentation import augment, crop, flip, mixup
from edgewise.lab.training import loss_function, train
from lab_cases import tiny

IMAGES = torch.randn(200, 3, 6, 5, generator=torch.Generator().manual_seed(1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_half_of_the_images_are_mirrored():
    flipped = flip(IMAGES, generator())
    same = [torch.equal(a, b) for a, b in zip(flipped, IMAGES, strict=True)]
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, IMAGES, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert abs(sum(same) - 100) < 36  # five binomial deviations of 7


def test_crops_are_cuts_of_the_padded_image_from_everywhere():
    cropped = crop(IMAGES, generator())
    padded = F.pad(IMAGES, (4, 4, 4, 4))
    seen = set()
    for image, whole in zip(cropped, padded, strict=True):
        places = [
            (i, j) for i in range(9) for j in range(9) if torch.equal(image, whole[:, i : i + 6, j : j + 5])
        ]
        assert len(places) == 1
        seen.update(places)
    assert {i for i, _ in seen} == {j for _, j in seen} == set(range(9))


def test_mixup_mixes_images_and_targets_in_one_share():
    targets = F.one_hot(torch.arange(200) % 7, 7).float()
    shares = []
    for seed in range(50):
        mixed, mixed_targets = mixup(IMAGES, targets, generator(seed))
        share = torch.rand((), generator=generator(seed))
        partner = ((mixed - share * IMAGES) / (1 - share)).flatten(1)
        order = torch.cdist(partner, IMAGES.flatten(1)).argmin(1)
        assert sorted(order.tolist()) == list(range(200))
        torch.testing.assert_close(mixed, share * IMAGES + (1 - share) * IMAGES[order])
        torch.testing.assert_close(mixed_targets, share * targets + (1 - share) * targets[order])
        shares.append(float(share))
    assert 0.3 < sum(shares) / 50 < 0.7


def test_the_order_is_flip_crop_mixup_and_the_seed_decides():
    inputs, targets = IMAGES.flatten(1), torch.arange(200) % 7
    options = {"image_shape": (3, 6, 5), "num_classes": 7}
    augmented, shares = augment(inputs, targets, **options, generator=generator(3))
    again = generator(3)
    by_hand = crop(flip(IMAGES, again), again).flatten(1)
    expected, expected_shares = mixup(by_hand, F.one_hot(targets, 7).float(), again)
    assert torch.equal(augmented, expected)
    assert torch.equal(shares, expected_shares)
    assert not torch.equal(augmented, augment(inputs, targets, **options, generator=generator(4))[0])


@pytest.mark.parametrize("loss", ["mse", "xent"])
def test_the_loss_of_shares_is_the_mean_of_the_losses_plus_a_constant(loss):
    """−Σ s log p is linear in s; ½‖f − s‖² is not, but is that of the shares."""
    outputs, shares = torch.randn(9, 7), torch.softmax(torch.randn(9, 7), -1)
    value = loss_function(loss)(lambda x: x, (outputs, shares))
    if loss == "xent":
        expected = -(shares * torch.log_softmax(outputs, -1)).sum(-1).mean()
    else:
        expected = 0.5 * (outputs - shares).square().sum(-1).mean()
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("loss", ["mse", "xent"])
def test_training_on_augmented_batches_is_seeded(loss, batch_size):
    config = tiny(data={"augment": True}, loss=loss, batch_size=batch_size)
    losses = [[row["train_loss"] for row in train(c).rows] for c in (config, config, tiny(loss=loss))]
    assert losses[0] == losses[1] != losses[2]


def test_text_is_not_augmented():
    with pytest.raises(ValueError, match="augment is for images, got data 'stdlib-text'"):
        DataConfig(name="stdlib-text", augment=True)
