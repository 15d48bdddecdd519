"""Every recipe at the paper's scale, for a few steps: real formats in, one run of each kind, time and memory out.

    python benchmarks/paper_scale.py DIR 3 fig1 fig2      # a number of steps, and figures
    python benchmarks/paper_scale.py DIR                  # the table of all that was tried

The files are made up (noise, and words by their rank), of the real formats and shapes: a few hundred samples, and the
5,000 images that the paper's fully connected networks take all at once. So networks, batches, curvature and memory are
those of the paper, but for that of the data. What was tried stays in DIR; each call adds to it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from edgewise.lab import sweep, trial
from edgewise.lab.cost_tables import duration, size
from edgewise.lab.results.store import Store

_IMAGES = {"cifar10": (5120, 10, "label"), "cifar100": (400, 100, "fine_label")}  # samples, classes, column
_CLASSES = 200  # of Tiny-ImageNet
_TEST = 128  # samples
_RANDOM = np.random.default_rng(0)


def pictures(number: int, side: int) -> Iterator[Image.Image]:
    for _ in range(number):
        yield Image.fromarray(_RANDOM.integers(0, 256, (side, side, 3), dtype=np.uint8))


def write_parquet(folder: Path, number: int, classes: int, label: str) -> None:
    for split, samples in (("train", number), ("test", _TEST)):
        columns = {"img": list(pictures(samples, 32)), label: [i % classes for i in range(samples)]}
        features = datasets.Features({"img": datasets.Image(), label: datasets.Value("int64")})
        path = folder / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))


def write_folders(folder: Path) -> None:
    for split, each in (("train", 2), ("val", 1)):
        for label in range(_CLASSES):
            place = folder / split / f"n{label:08d}"
            place.mkdir(parents=True)
            for i, picture in enumerate(pictures(each, 64)):
                picture.save(place / f"{label}_{i}.JPEG")


def write_text(folder: Path) -> None:
    letters = np.array(list("etaoinshrdlu"))
    words = ["".join(_RANDOM.choice(letters, _RANDOM.integers(2, 9))) for _ in range(5000)]
    shares = 1 / np.arange(1, len(words) + 1)
    for split, lines in (("train", 3000), ("test", 200)):
        drawn = _RANDOM.choice(words, (lines, 24), p=shares / shares.sum())
        text = [" = Title = " if i % 20 == 0 else " " + " ".join(line) + " ." for i, line in enumerate(drawn)]
        (folder / f"{split}.txt").write_text("\n".join(text) + "\n")


def prepare(data: Path) -> None:
    """Make the files, and take each data set from them by the command line."""
    os.environ["EDGEWISE_DATA"] = str(data / "prepared")
    makers = {name: lambda folder, its=its: write_parquet(folder, *its) for name, its in _IMAGES.items()}
    makers |= {"tiny-imagenet": write_folders, "wikitext-2": write_text, "wikitext-103": write_text}
    for name, make in makers.items():
        source = data / "source" / name
        if not source.exists():
            source.mkdir(parents=True)
            make(source)
            command = [sys.executable, "-m", "edgewise.cli", "prepare", name, "--source", str(source)]
            subprocess.run(command, check=True)


def try_figures(results: Path, steps: int, figures: list[str]) -> None:
    """Train the first steps of one run of each kind, as `edgewise figure --stop-after --one-of-each` does."""
    planned = trial.first_steps(trial.one_of_each(sweep.plan(figures, "paper")), steps)
    name = f"{steps}-{'-'.join(figures)}"
    scale = f"paper, first {steps} steps"
    sweep.run(planned, scale, results / name, workers=1, not_judged=trial.NOT_JUDGED)


def table(results: Path) -> str:
    """Return what every kind cost, and in which figures it is."""
    lines = [
        "| kind of run | figures | steps | core-seconds a step | peak memory | a whole run |",
        "|---|---|---|---|---|---|",
    ]
    found: dict[str, list[str]] = {}
    figures: dict[str, list[str]] = {}
    for folder in sorted(path.parent for path in results.glob("*/sweep.json")):
        store = Store.open(folder)
        steps = int(folder.name.partition("-")[0])
        for figure in store.figures:
            planned = trial.first_steps(trial.one_of_each(sweep.plan([figure.figure], "paper")), steps)
            for cost in trial.costs(store, planned):
                name = trial.name_of(cost.kind)
                figures.setdefault(name, []).append(figure.figure)
                found[name] = [
                    str(steps),
                    f"{cost.seconds_a_step:.3g}",
                    size(cost.peak_memory),
                    duration(cost.seconds_whole),
                ]
    lines += [
        f"| {name} | {', '.join(figures[name])} | {' | '.join(found[name])} |" for name in sorted(found)
    ]
    return "\n".join(lines)


def main() -> None:
    folder, *rest = sys.argv[1:]
    prepare(Path(folder) / "data")
    if rest:
        try_figures(Path(folder) / "results", int(rest[0]), rest[1:])
    print(table(Path(folder) / "results"))


if __name__ == "__main__":
    main()
