"""The settings of Slurm jobs, as `--slurm NAME=VALUE …` gives them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from edgewise.arguments import known_name, positive_count

_CLUSTERS = ("slurm", "local")
_JOBS = 100  # at a time, on a cluster


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What each job asks for; what is not given is left to Slurm.

    >>> settings(["partition=cpu", "time=120"]).time
    120
    """

    cluster: str = "slurm"  # or "local": processes of this machine stand in for it
    jobs: int | None = None  # at a time; 100 if not given, or as many as workers on this machine
    time: int = 60  # minutes, of a job
    memory: int | None = None  # GB, of a job
    cpus: int = 1
    gpus: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None  # nodes
    gres: str | None = None
    reservation: str | None = None

    def jobs_at_a_time(self, workers: int) -> int:
        """Return how many jobs there may be."""
        return self.jobs or (_JOBS if self.cluster == "slurm" else workers)

    def of_submitit(self) -> dict[str, Any]:
        """Return the parameters of submitit's executor, in which None leaves out."""
        own = {"no-requeue": True}  # a job that dies is replaced by the sweep
        further = own if self.reservation is None else own | {"reservation": self.reservation}
        return {
            "name": "edgewise",
            "timeout_min": self.time,
            "mem_gb": self.memory,
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus,
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_exclude": self.exclude,
            "slurm_gres": self.gres,
            "slurm_additional_parameters": further,
        }


_NUMBERS = ("jobs", "time", "memory", "cpus", "gpus")


def settings(given: Sequence[str]) -> Settings:
    """Return the settings that texts of the form NAME=VALUE give.

    Raises:
        UnknownNameError: there is no such setting.
        ValueError: a text of another form, a setting that is given twice, or a value that is not allowed.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        known_name("setting of --slurm", name, [each.name for each in fields(Settings)])
        if not value:
            raise ValueError(f"--slurm {text} has no value: write NAME=VALUE, such as time=120.")
        if name in found:
            raise ValueError(f"--slurm {name} is given twice: {name}={found[name]} and {text}.")
        found[name] = _number(name, value) if name in _NUMBERS else value
    if found.get("cluster", "slurm") not in _CLUSTERS:
        raise ValueError(f"--slurm cluster must be slurm or local, got {found['cluster']!r}.")
    return Settings(**found)


def _number(name: str, value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        raise ValueError(f"--slurm {name} must be a whole number, got {value!r}.") from None
    return positive_count(f"--slurm {name}", number)
