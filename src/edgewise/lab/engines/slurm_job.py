"""What a Slurm job does: it climbs its share of the ladders, and stores each run that it trains."""

import platform
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgewise.lab.configs import RunConfig
from edgewise.lab.engines import worker
from edgewise.lab.errors import RecipeError, StoreError
from edgewise.lab.ladders import Climb, leads_on
from edgewise.lab.results import lock
from edgewise.lab.results.files import Folder
from edgewise.lab.results.phase_diagram import Cell, cell_of
from edgewise.lab.results.runs import StoredRuns
from edgewise.lab.results.store import Store


@dataclass(kw_only=True)
class Report:
    """What became of a job's share."""

    stored: list[RunConfig] = field(default_factory=list)
    raised: list[tuple[RunConfig, Exception, str]] = field(default_factory=list)  # with where it was raised
    stopped: Exception | None = None  # what keeps all runs from being trained


class Climber:
    """What a job does; it is sent there."""

    def __init__(self, store: Store) -> None:
        self._results, self._holder = store.path.absolute(), store.holder
        self._recipe_file, self._path = store.recipe_file, sys.path
        self._unchecked = store.runs.unchecked

    def __call__(self, share: Sequence[Climb]) -> Report:
        """Train a share of the climbs."""
        _be_killed_by_signals()
        sys.path[:] = self._path  # finds what the sweep finds, also without an installation
        report = Report()
        try:
            worker.prepare(self._recipe_file)
            for climb in share:
                self._train(climb, report)
        except (RecipeError, StoreError) as error:
            report.stopped = error
        return report

    def _train(self, climb: Climb, report: Report) -> None:
        """Train the rungs up to the first that does not train."""
        folder, trained_below = Folder(self._results), climb.trained_below
        runs = StoredRuns(folder, self._unchecked)
        for config in climb.rungs:
            if not lock.holds(folder, self._holder):
                raise StoreError(
                    f"{platform.node()} does not see {folder.path} as the sweep does that submitted this job, or that "
                    "sweep has ended: choose a folder on a file system that all nodes share with --out."
                )
            if not runs.has(config.run_id):
                try:
                    result = worker.trained(config)
                except Exception as error:
                    report.raised.append((config, error, traceback.format_exc()))
                    return
                runs.save(config, result.rows, result.outcome)
            report.stored.append(config)
            cell = cell_of(runs.outcome(config.run_id))
            if not leads_on(cell, trained_below):
                return
            trained_below |= cell is Cell.TRAINED


def _be_killed_by_signals() -> None:
    """Let signals end the job, which is then followed by another; submitit raises, as if the run did.

    The one that announces the end of the job's time is not heeded: until then the run may be finished.
    """
    from submitit import JobEnvironment  # noqa: PLC0415 - only who chooses this engine needs it

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    announcing = f"SIG{JobEnvironment.USR_SIG}"
    signal.signal(getattr(signal, announcing), signal.SIG_IGN)
