"""What the laboratory can train with: its optimizers and its warmups, a row each. No torch.

Who adds an optimizer writes its row here and its constructor in `edgewise.lab.training.optimizers`; a warmup likewise.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What is known of an optimizer before it is made."""

    name: str
    label: str
    """As the figures name it."""
    full_batch_label: str | None = None
    """As they name it where a batch is all samples, if not the same."""
    options: tuple[str, ...]
    """Fields of `OptimizerConfig` that its constructor takes, beside the rate."""
    adaptive: bool = True
    """Whether μP scales its rates layer by layer, as those of Adam."""
    elementwise: bool = True
    """Whether each entry's update depends on that entry alone, and on the rate linearly: then runs can be stacked."""
    no_preconditioner: str | None = None
    """Why preconditioned sharpness cannot be measured with it, if it cannot: a clause about the optimizer."""

    @property
    def decayed(self) -> bool:
        """Whether it takes `weight_decay`, decoupled."""
        return "weight_decay" in self.options


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """What is known of a warmup before it is made."""

    name: str
    label: str
    """As the figures name it; the length follows if it has one."""
    has_length: bool = False
    """Whether `steps` and `lr_init` of `WarmupConfig` mean something to it; otherwise it finds its way by the loss."""


_ADAM = ("betas", "eps")
OPTIMIZERS = {
    row.name: row
    for row in (
        Optimizer(name="sgd", label="SGD", full_batch_label="GD", options=("momentum",), adaptive=False),
        Optimizer(name="adam", label="Adam", options=_ADAM),
        Optimizer(name="adamw", label="AdamW", options=(*_ADAM, "weight_decay")),
        Optimizer(name="gi-adam", label="GI-Adam", options=_ADAM),
        Optimizer(name="gi-adamw", label="GI-AdamW", options=(*_ADAM, "weight_decay")),
        Optimizer(name="ri-adam", label="RI-Adam", options=_ADAM, elementwise=False),
        Optimizer(name="radam", label="RAdam", options=_ADAM),
        Optimizer(name="nadam", label="NAdam", options=_ADAM),
        Optimizer(
            name="lion",
            label="Lion",
            options=("betas", "weight_decay"),
            no_preconditioner="whose signs are no preconditioner",
        ),
    )
}
WARMUPS = {
    row.name: row
    for row in (
        Warmup(name="linear", label="T_wrm", has_length=True),
        Warmup(name="catapult", label="catapults"),
        Warmup(name="edge", label="EdgeWarmup"),
    )
}
