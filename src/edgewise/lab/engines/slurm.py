"""Slurm jobs, submitted by submitit as arrays; each climbs its share of the ladders, with one thread.

A job stores its runs itself, so that nothing is lost with the sweep. The results folder must lie on a file system that
the nodes share. What a run raised comes back through submitit, which pickles it. Those files, and the logs, lie in a
new folder beside the results, for this sweep alone: no pickle is ever read from a results folder. A job that dies, by
whatever, is followed by another one.
"""

import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from edgewise.lab.configs import RunConfig
from edgewise.lab.engines import worker
from edgewise.lab.engines.slurm_job import Climber, Report
from edgewise.lab.engines.slurm_settings import Settings
from edgewise.lab.errors import StoreError, WorkerError
from edgewise.lab.ladders import Climb, Work
from edgewise.lab.results.store import Store

LIBRARY = ("submitit", "slurm")  # and the extra that it is in
_POLL_SECONDS = 0.5
_SECONDS_TO_END = 5.0  # that a cancelled process on this machine has
_LINES_SHOWN = 5  # of the log of a job that died
_PROGRAMS = ("sbatch", "srun", "sacct", "scancel")
_ENDED = {  # Slurm's states after which nothing follows, as jobs have --no-requeue; the last two are of processes here
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT", "FINISHED", "INTERRUPTED"),
}


def run(
    work: Work,
    store: Store,
    workers: int,
    on_progress: Callable[[dict[str, int]], None],
    settings: Settings | None = None,
) -> None:
    """Train and store what there is to do; `on_progress` gets run id → steps, of the runs that are finished.

    Args:
        work: what there is to do.
        store: where it goes.
        workers: jobs at a time, where processes of this machine stand in for the cluster.
        on_progress: called often.
        settings: of the jobs.

    Raises:
        MissingLibraryError: submitit is not installed.
        WorkerError: this machine cannot submit jobs, or Slurm refuses them.
        StoreError: results cannot be written.
        RecipeError: the recipe raises in the jobs.
        Exception: the first error of a run, once the others are finished and stored.
    """
    settings = settings or Settings()
    check(settings)
    files = _made_beside(store.path.absolute())
    jobs = _Jobs(work, store, _executor(files, settings), settings.jobs_at_a_time(workers))
    try:
        while jobs.are_needed():
            jobs.submit()
            on_progress(dict(jobs.steps))
            time.sleep(_POLL_SECONDS)
            jobs.collect()
        on_progress(dict(jobs.steps))
    finally:
        jobs.cancel()
        if not jobs.log_wanted:
            shutil.rmtree(files, ignore_errors=True)
    work.raise_first_error()


def check(settings: Settings) -> None:
    """See that jobs can be submitted from here; nothing is done.

    Raises:
        MissingLibraryError: submitit is not installed.
        WorkerError: programs of Slurm's are missing.
    """
    worker.library(*LIBRARY)
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if settings.cluster == "slurm" and missing:
        raise WorkerError(
            f"engine 'slurm' needs Slurm, and {', '.join(missing)} cannot be found here: run this where jobs are "
            "submitted, try it on this machine with --slurm cluster=local, or choose engine 'local'."
        )


def _made_beside(results: Path) -> Path:
    """Make a folder that nobody else can have put a pickle into."""
    try:
        return Path(tempfile.mkdtemp(prefix=f"{results.name}.slurm-", dir=results.parent))
    except OSError as error:
        raise StoreError(
            f"cannot write the files of the jobs beside {results}: {error}. Nothing was trained: mend the permissions "
            "or choose another folder with --out."
        ) from error


def _executor(files: Path, settings: Settings) -> Any:
    executor = worker.library(*LIBRARY).AutoExecutor(folder=files, cluster=settings.cluster)
    executor.update_parameters(**settings.of_submitit())
    return executor


class _Jobs:
    """The jobs of a sweep: who has which climbs, and which runs are still to be finished."""

    def __init__(self, work: Work, store: Store, executor: Any, most: int) -> None:
        self._work, self._store, self._executor, self._most = work, store, executor, most
        self._planned = {config.run_id: config for config in work.configs}
        self._open = {config.run_id: config for config in work.start()}
        self._shares: dict[Any, list[Climb]] = {}  # of the jobs that have not ended
        self._deaths: Counter[str] = Counter()  # run id → jobs that died under it
        self._one_worked = False
        self._fallen = 0  # jobs in a row, each submitted after the one before had died
        self._forerunners: dict[Any, int] = {}  # of each job: what the above was when it was submitted
        self.steps = {config.run_id: config.num_steps for config in self._newly_stored()}
        self.log_wanted = False

    def are_needed(self) -> bool:
        """Whether there is something left to train."""
        return bool(self._open)

    def submit(self) -> None:
        """Submit an array of jobs for the runs that are in no job's hands; one under which a job died has its own.

        Raises:
            WorkerError: Slurm refuses, and no job is left whose end could change its mind.
        """
        shares = self._dealt()
        if not shares:
            return
        submitit = worker.library(*LIBRARY)
        try:
            with submitit.helpers.clean_env():  # a job that submits would pass its own settings on
                jobs = self._executor.map_array(Climber(self._store), shares)
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedSubmissionError) as error:
            if not self._shares:
                raise WorkerError(
                    f"Slurm refused {len(shares)} jobs ({error}): finished runs are kept; mend the settings of "
                    "--slurm, such as partition, account, time or jobs, and run the same command again."
                ) from error
            return
        self._shares |= zip(jobs, shares, strict=True)
        self._forerunners |= dict.fromkeys(jobs, self._fallen)

    def collect(self) -> None:
        """Take in what jobs stored, and what became of those that ended.

        Raises:
            StoreError, RecipeError: a job says that no run can be stored or trained.
            WorkerError: a job cannot begin.
        """
        ended = [job for job in self._shares if _has_ended(job)]
        reports = [_report(job) for job in ended]
        self._take_stored()  # all that those stored
        for job, report in zip(ended, reports, strict=True):
            share = self._shares.pop(job)
            if report is None:
                self._bury(job, [config for climb in share for config in climb.rungs])
            elif report.stopped is not None:
                raise report.stopped
            else:
                self._take(report, job)

    def cancel(self) -> None:
        """End the jobs that are left."""
        for job in self._shares:
            with contextlib.suppress(OSError):
                job.cancel(check=False)
        deadline = time.monotonic() + _SECONDS_TO_END
        while time.monotonic() < deadline and any(job.state == "RUNNING" for job in self._shares):
            time.sleep(_POLL_SECONDS / 10)

    def _dealt(self) -> list[list[Climb]]:
        """Return what jobs are to be submitted for."""
        held = {config.run_id for share in self._shares.values() for climb in share for config in climb.rungs}
        waiting = [self._work.climb(config) for run_id, config in self._open.items() if run_id not in held]
        alone = [
            [climb] for climb in waiting if self._deaths[climb.rungs[0].run_id]
        ]  # as it would drag others along
        others = [climb for climb in waiting if not self._deaths[climb.rungs[0].run_id]]
        free = self._most - len(self._shares)
        number = min(free, len(others))
        return [others[i::number] for i in range(number)] + alone[: free - number]

    def _newly_stored(self, known: Collection[str] = ()) -> list[RunConfig]:
        """Return the planned runs that are stored; listing their folder refreshes what a network disk says of it."""
        found = [
            run_id for run_id in self._store.runs.ids() if run_id in self._planned and run_id not in known
        ]
        return [self._planned[run_id] for run_id in found if self._store.runs.has(run_id)]

    def _take_stored(self) -> None:
        for config in self._newly_stored(self.steps):
            self._one_worked = True
            self.steps[config.run_id] = config.num_steps
            self._open.pop(config.run_id, None)
            self._open |= {following.run_id: following for following in self._work.after(config)}

    def _take(self, report: Report, job: Any) -> None:
        self._one_worked = True
        for config, error, where in report.raised:
            if self._open.pop(config.run_id, None) is not None:
                error.__cause__ = WorkerError(f"\n{where}")
                self._work.fail(config, error)
        for config in report.stored:  # what is not to be seen here is tried again
            self._count_death(config, job)

    def _bury(self, job: Any, rungs: Sequence[RunConfig]) -> None:
        """Take in that a job died, under the first of its runs that is not finished."""
        self._fallen = max(self._fallen, self._forerunners[job] + 1)
        for config in [config for config in rungs if config.run_id in self._open][:1]:
            self._count_death(config, job)

    def _count_death(self, config: RunConfig, job: Any) -> None:
        """Try a run again, or give it up; all of them, if job after job died and none did anything."""
        if config.run_id not in self._open:
            return
        self._deaths[config.run_id] += 1
        hopeless = self._fallen > worker.RETRIES and not self._one_worked
        if hopeless or self._deaths[config.run_id] > worker.RETRIES:
            self._work.fail(config, WorkerError(_last_words(job, self._deaths[config.run_id])))
            self.log_wanted = True
            del self._open[config.run_id]
            if hopeless:
                self._open.clear()


def _has_ended(job: Any) -> bool:
    return job.paths.result_pickle.exists() or _state(job) in _ENDED


def _state(job: Any) -> str:
    """Return Slurm's word for the state of a job; it may add to it who cancelled the job."""
    return next(iter(job.state.split()), "UNKNOWN")


def _report(job: Any) -> Report | None:
    """Return what a job that ended reports; nothing if it died."""
    if not job.paths.result_pickle.exists() and _state(job) != "COMPLETED":  # then the file may be on its way
        return None
    submitit = worker.library(*LIBRARY)
    try:
        return job.result()
    except submitit.core.utils.FailedJobError as error:  # raised outside of the runs
        return Report(stopped=WorkerError(f"a job could not begin: {error}"))
    except submitit.core.utils.UncompletedJobError:
        return None


def _last_words(job: Any, deaths: int) -> str:
    """Return why a run is given up, with the end of the log of the job that died last."""
    log = job.paths.stderr
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_SHOWN:]
        said = "".join(f"\n  {line}" for line in lines)
        return (
            f"jobs died under this run ({deaths}), the last one in state {_state(job)}, with {log} ending in:{said}\n"
            "It may need more --slurm time or memory; the same command tries it again."
        )
    return f"jobs died under this run ({deaths}), the last one in state {_state(job)}, before it had a log: {log}."
