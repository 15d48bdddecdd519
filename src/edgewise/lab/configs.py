"""What a run is: frozen configurations, their checks, and the run id that follows from them. No torch."""

import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from edgewise.arguments import (
    known_name,
    nonnegative_count,
    nonnegative_number,
    number_below_one,
    positive_count,
    positive_number,
)
from edgewise.lab import catalogue, plugins

__all__ = [
    "DATA",
    "DECAYED",
    "DECAYS",
    "HEAD_WIDTH",
    "IMAGES",
    "LOSSES",
    "LR_UNITS",
    "MEASUREMENTS",
    "MODELS",
    "MODEL_DATA",
    "NORMS",
    "OPTIMIZERS",
    "PARAMETERIZATIONS",
    "SIGNALS",
    "TEXTS",
    "WARMUPS",
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "WarmupConfig",
    "from_dict",
    "to_dict",
]

IMAGES = ("digits", "digit-pairs", "digit-pairs-2x", "cifar10", "cifar100", "tiny-imagenet")
SIGNALS = ("mnist1d",)
TEXTS = ("stdlib-text", "stdlib-bpe", "wikitext-2", "wikitext-103")
DATA = IMAGES + SIGNALS + TEXTS
MODELS = ("fcn", "cnn", "wrn", "lm")
MODEL_DATA = {"fcn": IMAGES + SIGNALS, "cnn": IMAGES + SIGNALS, "wrn": IMAGES + SIGNALS, "lm": TEXTS}
NORMS = ("pre", "post")
PARAMETERIZATIONS = ("sp", "ntp", "mup", "simple-mup")
LOSSES = ("mse", "xent")
OPTIMIZERS = tuple(catalogue.OPTIMIZERS)
DECAYED = tuple(name for name, row in catalogue.OPTIMIZERS.items() if row.decayed)
WARMUPS = tuple(catalogue.WARMUPS)
LR_UNITS = ("absolute", "1/sharpness")
DECAYS = ("none", "cosine")
MEASUREMENTS = ("sharpness", "preconditioned_sharpness", "critical_lr", "gradient_norm", "second_moment")

HEAD_WIDTH = 32  # of an LM's attention
_SCHEMA = 2  # part of every run id: raise it when the same config means another computation
# The same where rates are in units of a text's initial sharpness, which once was that of its beginning alone.
_SCHEMA_TEXT_UNIT = 3

# Stored configs are read without the recipe that registered their networks and data: any name is taken then.
_any_name = contextvars.ContextVar("_any_name", default=False)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples."""

    name: str
    """One of `DATA`, or of `edgewise.lab.plugins`."""
    context: int = 32
    """Length of a text sample in tokens; images ignore it."""
    num_samples: int | None = None
    """Training samples: the first so many of a fixed permutation; all by default."""
    augment: bool = False
    """Random horizontal flips, crops and mixup of each training batch, in this order; images only."""

    def __post_init__(self) -> None:
        _own_name("data", self.name, [*DATA, *plugins.DATA])
        _settle(self, context=positive_count("context", self.context))
        if self.num_samples is not None:
            _settle(self, num_samples=positive_count("num_samples", self.num_samples))
        if not isinstance(self.augment, bool):
            raise TypeError(f"augment must be True or False, got {self.augment!r}.")
        if self.augment and self.name in SIGNALS + TEXTS:
            raise ValueError(f"augment is for images, got data {self.name!r}: leave it at False.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network: FCN-depth-width, CNN-depth-width, WRN-depth-width or LM-depth-width."""

    name: str
    """One of `MODELS`, or of `edgewise.lab.plugins`."""
    depth: int
    """Hidden layers of an FCN, convolutions of a CNN, blocks of an LM, 6n + 4 of a WRN with n blocks a stage."""
    width: int
    """Units of a hidden layer, channels of a CNN, width of an LM's residual stream, widening factor of a WRN."""
    parameterization: str
    """One of `PARAMETERIZATIONS`; a CNN has "sp" only."""
    norm: str = "pre"
    """One of `NORMS`: an LM's LayerNorms before attention and MLP, or after."""
    final_norm: bool = True
    """A LayerNorm before an LM's last layer."""

    def __post_init__(self) -> None:
        _own_name("model", self.name, [*MODELS, *plugins.MODELS])
        known_name("parameterization", self.parameterization, PARAMETERIZATIONS)
        known_name("norm", self.norm, NORMS)
        if not isinstance(self.final_norm, bool):
            raise TypeError(f"final_norm must be True or False, got {self.final_norm!r}.")
        depth, width = positive_count("depth", self.depth), positive_count("width", self.width)
        if self.name == "lm" and width % HEAD_WIDTH:
            raise ValueError(
                f"width of an LM must be a multiple of {HEAD_WIDTH}, its head width, got {self.width}."
            )
        if self.name == "wrn" and (depth < 10 or depth % 6 != 4):
            raise ValueError(f"depth of a WRN must be 6n + 4: 10, 16, 22, …; got {self.depth}.")
        if self.name == "cnn" and self.parameterization != "sp":
            raise ValueError(
                "parameterization of a CNN must be 'sp', as its BatchNorm undoes the scale of a layer, "
                f"got {self.parameterization!r}."
            )
        _settle(self, depth=depth, width=width)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer, and its target learning rate η_trgt."""

    name: str
    """One of `OPTIMIZERS`; on the full batch "sgd" is gradient descent."""
    lr: float
    """η_trgt in `lr_unit`."""
    lr_unit: str = "absolute"
    """"absolute", or "1/sharpness": multiples of 1/λ₀, λ₀ measured at initialization: see `initial_sharpness`."""
    momentum: float = 0.0
    """Heavy-ball momentum of "sgd"."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of the Adam family and of Lion."""
    eps: float = 1e-8
    """Of the Adam family."""
    weight_decay: float = 0.0
    """Decoupled decay of those in `DECAYED`; others ignore it."""

    def __post_init__(self) -> None:
        known_name("optimizer", self.name, OPTIMIZERS)
        known_name("lr_unit", self.lr_unit, LR_UNITS)
        betas = tuple(number_below_one("betas", beta) for beta in self.betas)
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers from 0 to below 1, got {self.betas!r}.")
        _settle(
            self,
            lr=positive_number("lr", self.lr),
            momentum=number_below_one("momentum", self.momentum),
            betas=betas,
            eps=nonnegative_number("eps", self.eps),
            weight_decay=nonnegative_number("weight_decay", self.weight_decay),
        )

    @property
    def traits(self) -> catalogue.Optimizer:
        """What the catalogue says of the optimizer."""
        return catalogue.OPTIMIZERS[self.name]


@dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """The schedule of the learning rate."""

    kind: str = "linear"
    """"linear", or "catapult" or "edge", which have neither length nor start: see `edgewise.CatapultWarmup`."""
    steps: int = 1
    """T_wrm of linear warmup; 1 is a constant rate."""
    lr_init: float | Literal["critical"] = 0.0
    """Where linear warmup starts, in rates of the first parameter group: see `edgewise.LinearWarmup`."""
    decay: str = "none"
    """After warmup: "none", or "cosine" to a tenth of the target at the last step."""

    def __post_init__(self) -> None:
        known_name("warmup", self.kind, WARMUPS)
        _settle(self, steps=positive_count("warmup_steps", self.steps))
        known_name("decay", self.decay, DECAYS)
        if isinstance(self.lr_init, str):
            known_name("lr_init", self.lr_init, ("critical",))
        else:
            _settle(self, lr_init=nonnegative_number("lr_init", self.lr_init))

    @property
    def traits(self) -> catalogue.Warmup:
        """What the catalogue says of the warmup."""
        return catalogue.WARMUPS[self.kind]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run, from the seed to the last step; everything that decides its numbers."""

    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    loss: str = "xent"
    """One of `LOSSES`; "mse" is ½‖f − y‖² against one-hot targets, averaged over the samples."""
    num_steps: int
    """Optimizer steps."""
    schedule_steps: int | None = None
    """Steps of the whole run, where this is only its beginning: warmup and decay are of so many; `num_steps` if not
    given. The ids of whole runs know nothing of it."""
    batch_size: int | None = None
    """Samples a step, drawn with replacement; `None` is the full batch."""
    measure: tuple[str, ...] = ()
    """Which of `MEASUREMENTS` to follow, on the batch of the step; "second_moment" is the norm of Adam's v."""
    measure_every: int = 1
    """Steps from one measurement to the next."""
    evaluate_every: int | None = None
    """Steps from one look at the test data to the next, of which the best accuracy is kept; `None` looks at the end
    alone. Training is the same either way; the ids of runs without it know nothing of it."""
    measure_rtol: float = 1e-2
    """Tolerance on the residual; the eigenvalue's own error is about its square, over the spectral gap."""
    seed: int = 0
    """Of initialization and batches."""

    def __post_init__(self) -> None:
        known_name("loss", self.loss, LOSSES)
        _settle(
            self,
            num_steps=positive_count("num_steps", self.num_steps),
            measure_every=positive_count("measure_every", self.measure_every),
            evaluate_every=None
            if self.evaluate_every is None
            else positive_count("evaluate_every", self.evaluate_every),
            measure_rtol=positive_number("measure_rtol", self.measure_rtol),
            seed=nonnegative_count("seed", self.seed),
        )
        if self.batch_size is not None:
            _settle(self, batch_size=positive_count("batch_size", self.batch_size))
        for measurement in self.measure:
            known_name("measurement", measurement, MEASUREMENTS)
        why_not = self.optimizer.traits.no_preconditioner
        if why_not and "preconditioned_sharpness" in self.measure:
            raise ValueError(
                f"measure must not have 'preconditioned_sharpness' with optimizer {self.optimizer.name!r}, {why_not}: "
                "measure 'sharpness'."
            )
        if self.schedule_steps is not None:
            _settle(self, schedule_steps=positive_count("schedule_steps", self.schedule_steps))
            if self.schedule_steps <= self.num_steps:
                raise ValueError(
                    f"schedule_steps must be above num_steps = {self.num_steps}, got {self.schedule_steps}: leave it "
                    "out for a whole run."
                )
        if self.warmup.steps > self.whole_steps:
            name = "num_steps" if self.schedule_steps is None else "schedule_steps"
            raise ValueError(
                f"warmup_steps must be at most {name} = {self.whole_steps}, got {self.warmup.steps}."
            )
        own = self.model.name in plugins.MODELS or self.data.name in plugins.DATA or _any_name.get()
        if not own and self.data.name not in MODEL_DATA[self.model.name]:
            allowed = ", ".join(MODEL_DATA[self.model.name])
            raise ValueError(
                f"model {self.model.name!r} takes data of its kind ({allowed}), got {self.data.name!r}."
            )

    @property
    def whole_steps(self) -> int:
        """Steps that the schedule is made for."""
        return self.num_steps if self.schedule_steps is None else self.schedule_steps

    @functools.cached_property
    def run_id(self) -> str:
        """Twelve hexadecimal digits that name this config: equal configs, equal ids."""
        of_text = self.data.name in TEXTS and self.optimizer.lr_unit == "1/sharpness"
        schema = _SCHEMA_TEXT_UNIT if of_text else _SCHEMA
        text = json.dumps({"schema": schema} | to_dict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _own_name(kind: str, name: str, known: list[str]) -> None:
    """Check a name that recipes may add to."""
    if not (_any_name.get() and isinstance(name, str)):
        known_name(kind, name, known)


@contextlib.contextmanager
def _taking_any_name() -> Iterator[None]:
    token = _any_name.set(True)
    try:
        yield
    finally:
        _any_name.reset(token)


def _settle(config: Any, **checked: Any) -> None:
    """Write checked values back, in the type that the check returned: 1 and 1.0 are the same rate."""
    for name, value in checked.items():
        object.__setattr__(config, name, value)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the config as nested dictionaries of plain values, as stored in JSON."""
    values = {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    for name in ("schedule_steps", "evaluate_every"):
        if values[name] is None:  # as before there was such a field: run ids are hashes of this
            del values[name]
    return values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Return the config that `to_dict` gave these values for, also where no recipe has registered its names."""
    optimizer = values["optimizer"]
    with _taking_any_name():
        return RunConfig(
            **values
            | {
                "data": DataConfig(**values["data"]),
                "model": ModelConfig(**values["model"]),
                "optimizer": OptimizerConfig(**optimizer | {"betas": tuple(optimizer["betas"])}),
                "warmup": WarmupConfig(**values["warmup"]),
                "measure": tuple(values["measure"]),
            }
        )
