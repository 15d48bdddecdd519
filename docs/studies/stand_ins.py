"""What networks start from on the data that stand in for the paper's: the table of docs/laboratory.md.

`python docs/studies/stand_ins.py` prints it: each network that a figure trains at the scales "embedded" and "desk" on
each stand-in, with the sharpness that is the unit of rates, and the size and loss of the outputs on the test samples,
over five seeds.
"""

import statistics
from dataclasses import replace
from typing import NamedTuple

import torch

from edgewise.lab import data, models
from edgewise.lab.configs import DATA, DataConfig, ModelConfig, RunConfig
from edgewise.lab.recipes import PAPER, RECIPES
from edgewise.lab.recipes.recipe import number
from edgewise.lab.training import initial_sharpness, loss_function

SEEDS = range(5)
_NAMES = {"sp": "SP", "mup": "μP"}
PAPERS = {  # λ₀ by network, parameterization, final LayerNorm and loss
    ("fcn", "mup", True, "mse"): "0.05",
    ("fcn", "sp", True, "mse"): "50",
    ("wrn", "mup", True, "xent"): "2.58",
    ("lm", "sp", True, "xent"): "5",
    ("lm", "sp", False, "xent"): "about 500",
}


class Start(NamedTuple):
    """What decides where a run starts, but for the seed."""

    data: DataConfig
    model: ModelConfig
    loss: str


def main() -> None:
    """Print the table, each row as soon as it is measured."""
    print("| data | network | loss | scale | λ₀, median (range) | outputs | initial loss | λ₀ in the paper |")
    print("|---|---|---|---|---|---|---|---|")
    scales: dict[Start, dict[str, None]] = {}
    for scale in ("embedded", "desk"):
        for figure in PAPER:
            for config in RECIPES[figure].configs(scale):
                scales.setdefault(start_of(config), {})[scale] = None
    for start in sorted(scales, key=lambda start: (DATA.index(start.data.name), str(start))):
        print(row(start, ", ".join(scales[start])), flush=True)


def start_of(config: RunConfig) -> Start:
    """Return the start of a run; simple μP starts as μP does, and differs in Adam's rates."""
    simple = config.model.parameterization == "simple-mup"
    model = replace(config.model, parameterization="mup") if simple else config.model
    return Start(config.data, model, config.loss)


def row(start: Start, scales: str) -> str:
    """Return a line of the table."""
    model = start.model
    sharpness = [initial_sharpness(*start, seed) for seed in SEEDS]
    sizes, losses = zip(*(size_and_loss(start, seed) for seed in SEEDS), strict=True)
    network = f"{model.name.upper()}-{model.depth}-{model.width}, {_NAMES[model.parameterization]}"
    cells = (
        start.data.name,
        network if model.final_norm else f"{network}, no final LayerNorm",
        {"mse": "squared", "xent": "cross-entropy"}[start.loss],
        scales,
        f"{number(statistics.median(sharpness))} ({number(min(sharpness))}–{number(max(sharpness))})",
        number(statistics.median(sizes)),
        number(statistics.median(losses)),
        PAPERS.get((model.name, model.parameterization, model.final_norm, start.loss), "–"),
    )
    return f"| {' | '.join(cells)} |"


@torch.no_grad()
def size_and_loss(start: Start, seed: int) -> tuple[float, float]:
    """Return the root mean square of the outputs on the test samples, and their loss."""
    dataset = data.load(start.data)
    torch.manual_seed(seed)
    model = models.build(start.model, dataset)
    inputs, targets = dataset.test_batch()
    size = model(inputs).square().mean().sqrt()
    return float(size), float(loss_function(start.loss)(model, (inputs, targets)))


if __name__ == "__main__":
    main()
