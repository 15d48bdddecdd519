"""Ways to run many configs."""

from collections.abc import Callable

from edgewise.arguments import known_name
from edgewise.lab.engines import cluster, local, vectorized
from edgewise.lab.ladders import Work
from edgewise.lab.results.store import Store

__all__ = ["ENGINES", "Engine", "engine"]

Engine = Callable[[Work, Store, int, Callable[[dict[str, int]], None]], None]

ENGINES: dict[str, Engine] = {"local": local.run, "vectorized": vectorized.run, "ray": cluster.run}


def engine(name: str) -> Engine:
    """Return an engine by name.

    Raises:
        UnknownNameError: there is none.
        MissingLibraryError: it needs a library that is not installed.
    """
    chosen = ENGINES[known_name("engine", name, ENGINES)]
    if chosen is cluster.run:
        cluster.imported()  # or says what to install, before anything else is done
    return chosen
