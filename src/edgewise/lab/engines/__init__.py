"""Ways to run many configs."""

from collections.abc import Callable, Sequence
from functools import partial

from edgewise.arguments import known_name
from edgewise.lab.engines import cluster, local, slurm, vectorized, worker
from edgewise.lab.engines.slurm_settings import settings
from edgewise.lab.ladders import Work
from edgewise.lab.results.store import Store

__all__ = ["ENGINES", "Engine", "engine"]

Engine = Callable[[Work, Store, int, Callable[[dict[str, int]], None]], None]

ENGINES: dict[str, Engine] = {
    "local": local.run,
    "vectorized": vectorized.run,
    "ray": cluster.run,
    "slurm": slurm.run,
}


def engine(name: str, slurm_settings: Sequence[str] = ()) -> Engine:
    """Return an engine by name, which can run here; what it lacks is said before anything else is done.

    Args:
        name: one of `ENGINES`.
        slurm_settings: of the jobs of engine "slurm", NAME=VALUE each.

    Raises:
        UnknownNameError: there is no such engine, or no such setting.
        ValueError: a setting that is not allowed, or of another engine.
        MissingLibraryError: it needs a library that is not installed.
        WorkerError: there is no Slurm.
    """
    chosen = ENGINES[known_name("engine", name, ENGINES)]
    if chosen is slurm.run:
        of_jobs = settings(slurm_settings)
        slurm.check(of_jobs)
        return partial(slurm.run, settings=of_jobs)
    if slurm_settings:
        raise ValueError(f"--slurm {' '.join(slurm_settings)} is for engine 'slurm', not for {name!r}.")
    if chosen is cluster.run:
        worker.library(*cluster.LIBRARY)
    return chosen
