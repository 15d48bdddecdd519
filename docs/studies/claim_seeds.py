"""Trains figures of curves again with other seeds, to see which of their findings are one seed's luck.

    python docs/studies/claim_seeds.py OUT SCALE SEED... -- FIGURE...     for example runs embedded 1 2 -- fig7 fig31
    python docs/studies/claims.py OUT/SCALE-seed-1 OUT/SCALE-seed-2       takes what came out into the record

A folder for each seed. Figures whose recipes have several seeds already are refused.
"""

import sys
from dataclasses import replace
from pathlib import Path

from claims_record import seeded

from edgewise.lab import sweep
from edgewise.lab.ladders import Ladder
from edgewise.lab.report.page import write_report


def planned_with(seed: int, figures: list[str], scale: str) -> dict[str, list[Ladder]]:
    """Return the runs of the figures with another seed.

    Raises:
        ValueError: a figure has several seeds.
    """
    planned = sweep.plan(figures, scale)
    for figure, ladders in planned.items():
        seeds = {config.seed for ladder in ladders for config in ladder}
        if len(seeds) > 1:
            raise ValueError(
                f"{figure} must have one seed, got {len(seeds)}: its claims are of all of them already."
            )
    return {
        figure: [tuple(replace(config, seed=seed) for config in ladder) for ladder in ladders]
        for figure, ladders in planned.items()
    }


def main() -> None:
    """Train, seed by seed."""
    given = sys.argv[1:]
    (out, scale, *seeds), figures = given[: given.index("--")], given[given.index("--") + 1 :]
    for seed in map(int, seeds):
        name = seeded(scale, seed)
        write_report(sweep.run(planned_with(seed, figures, scale), name, Path(out) / name))


if __name__ == "__main__":
    main()
