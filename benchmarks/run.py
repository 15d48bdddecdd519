"""What measurements cost, in units that travel: gradients, products, forwards, and ratios timed side by side.

Run by `make bench`; writes benchmarks/RESULTS.md. Times are medians over interleaved repeats on one thread.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import critical_rates
import edge_overhead
import laboratory
import memory
import peers
import torch
import tracking

import edgewise as ew
import optimizers
from edgewise.arguments import known_name
from edgewise.curvature.routes.reverse import ReverseRoute
from edgewise.isolation import isolated
from edgewise.lab import data, models
from edgewise.lab.configs import DataConfig, ModelConfig
from edgewise.lab.training import Batch, LossFunction, loss_function
from edgewise.loss.objective import Objective

RESULTS = Path(__file__).with_name("RESULTS.md")
REPEATS = 15
Row = tuple[str, str, str]


def median_seconds(*calls: Callable[[], object]) -> list[float]:
    """Return each call's median time; the calls take turns, so that noise meets them alike."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(REPEATS):
        for call, seen in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            seen.append(time.perf_counter() - start)
    return [statistics.median(seen) for seen in times]


def tasks() -> dict[str, tuple[torch.nn.Module, LossFunction, Batch]]:
    """Return the demo's two networks, with their losses and a batch each."""
    made = {}
    for name, kind, depth, width, dataset_name, loss in (
        ("FCN-4-256, digits, full batch, MSE", "fcn", 4, 256, "digits", "mse"),
        ("LM-2-64, 16 × 32 bytes, cross-entropy", "lm", 2, 64, "stdlib-text", "xent"),
    ):
        torch.manual_seed(0)
        dataset = data.load(DataConfig(name=dataset_name, context=32))
        config = ModelConfig(name=kind, depth=depth, width=width, parameterization="sp")
        indices = None if kind == "fcn" else torch.arange(16)
        made[name] = (models.build(config, dataset), loss_function(loss), dataset.train_batch(indices))
    return made


def curvature_costs() -> list[Row]:
    """Products and cold measurements, in gradients."""
    rows = []
    for name, (model, loss_fn, batch) in tasks().items():
        with isolated(model):
            objective = Objective(model, loss_fn, [batch])
            vector = torch.randn(objective.size)
            route = ReverseRoute(objective)
            route.product(vector)
            gradient, product = median_seconds(objective.gradient, lambda r=route, v=vector: r.product(v))
        rows.append(
            (
                f"{name}: one Hessian-vector product on the kept graph",
                "gradients",
                f"{product / gradient:.2f}",
            )
        )
        found = ew.sharpness(model, loss_fn, [batch])
        (cold,) = median_seconds(lambda m=model, f=loss_fn, b=batch: ew.sharpness(m, f, [b]))
        rows.append((f"{name}: cold sharpness, rtol 1e-3", "products", str(found.num_hvps)))
        rows.append((f"{name}: cold sharpness, rtol 1e-3", "gradients", f"{cold / gradient:.1f}"))
    return rows


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table of the results, and what measures it."""

    title: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterable[tuple[str, ...]]]
    packages: tuple[str, ...] = ()  # beside torch

    def measure(self) -> str:
        """Return the section, with the day and the versions."""
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *self.packages))
        lines = [
            "| " + " | ".join(row) + " |" for row in (self.columns, ["---"] * len(self.columns), *self.rows())
        ]
        measured = (
            f"Measured on {datetime.now(UTC):%Y-%m-%d}: Python {platform.python_version()}, {versions}."
        )
        return f"## {self.title}\n\n{measured}\n\n" + "\n".join(lines) + "\n"


SECTIONS = {
    "peers": Section(
        title="Cold sharpness beside the peers",
        columns=("task", "method and setting", "true relative error", "products", "gradients"),
        rows=peers.rows,
        packages=("PyHessian", "hessian-eigenthings", "curvlinops-for-pytorch"),
    ),
    "tracking": Section(
        title="Sharpness followed step by step",
        columns=("training", "what", "measured"),
        rows=tracking.rows,
        packages=("PyHessian", "hessian-eigenthings", "curvlinops-for-pytorch"),
    ),
    "memory": Section(title="Memory of a product", columns=("route", "unit", "measured"), rows=memory.rows),
    "critical": Section(
        title="Critical learning rates",
        columns=("searches along a training", "unit", "measured (how they ended)"),
        rows=critical_rates.rows,
    ),
    "edge": Section(
        title="EdgeWarmup by the clock", columns=("training", "unit", "measured"), rows=edge_overhead.rows
    ),
    "laboratory": Section(title="The laboratory", columns=("what", "unit", "measured"), rows=laboratory.rows),
    "rest": Section(
        title="Everything else",
        columns=("what", "unit", "measured"),
        rows=lambda: [*curvature_costs(), *optimizers.rows()],
    ),
}
HEADER = """# Benchmark results

`make bench`, or `python benchmarks/run.py NAME …` for some of the sections: CPU, one thread. The unit gradient is one
full gradient of the same batch, timed in turn. Times are from machines with other work: read the ratios. What was aimed
at, and what is missed: docs/sharpness.md, "What it costs".
"""


def main() -> None:
    """Measure the sections named on the command line, all by default, and write each when it is done."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="NAME", help=", ".join(SECTIONS))
    for name in parser.parse_args().sections or SECTIONS:
        known_name("section", name, SECTIONS)
        write(SECTIONS[name])


def write(section: Section) -> None:
    """Measure a section and put it in its place; leave the others as they are."""
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    texts = {text.split("\n", 1)[0]: f"## {text.rstrip()}\n" for text in old.split("\n## ")[1:]}
    texts[section.title] = section.measure()
    known = [texts[s.title] for s in SECTIONS.values() if s.title in texts]
    RESULTS.write_text("\n".join([HEADER, *known]), encoding="utf-8")


if __name__ == "__main__":
    main()
