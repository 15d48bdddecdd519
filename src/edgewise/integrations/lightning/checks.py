"""What the callbacks cannot work with, refused before any compute."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    XLAStrategy,
)
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch.optim import Optimizer

from edgewise.torch_internals import takes_scaled_gradients

_STRATEGIES = (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)
_STEPPING_FOR_THEMSELVES = (DeepSpeedStrategy, XLAStrategy, SingleDeviceXLAStrategy)  # subclasses of those


def check_module(callback: Callback, trainer: Trainer, module: LightningModule) -> None:
    """Raise where the trainer's strategy, or the module's way to train, cannot be observed."""
    name, kind = type(callback).__name__, type(module).__name__
    strategy = trainer.strategy
    if not isinstance(strategy, _STRATEGIES) or isinstance(strategy, _STEPPING_FOR_THEMSELVES):
        raise ValueError(
            f"{name} cannot observe under {type(strategy).__name__}, which steps in its own way or hides gradients "
            "from the loop: train on one device or with DDPStrategy, and take warmup.export(), the factors that were "
            "found, into this run with torch's LambdaLR; or shard by fully_shard in a ModelParallelStrategy."
        )
    if not module.automatic_optimization:
        raise ValueError(
            f"{name} needs automatic optimization, and {kind} has automatic_optimization = False: remove the callback, "
            "make the warmup in configure_optimizers, and in training_step call warmup.observe(closure, loss=loss) "
            "between self.manual_backward(loss) and optimizer.step()."
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(
            f"{name} needs the batch, and training_step of {kind} fetches its own from dataloader_iter: let it take "
            "(batch, batch_idx)."
        )


def check_optimizer(callback: Callback, trainer: Trainer, module: LightningModule) -> Optimizer:
    """Return the trainer's one optimizer, or raise where it is none of the module's, or hides its gradients."""
    name = type(callback).__name__
    if len(trainer.optimizers) != 1:
        raise ValueError(
            f"{name} needs one optimizer, and configure_optimizers returned {len(trainer.optimizers)}: put the "
            "parameters into groups of one optimizer, with rates of their own."
        )
    optimizer: Optimizer = trainer.optimizers[0]
    own = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            f"{name} found no parameter of {type(module).__name__} that requires a gradient in the optimizer, "
            f"{type(optimizer).__name__}: return one of self.parameters() from configure_optimizers."
        )
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and takes_scaled_gradients(optimizer):
        raise ValueError(
            f"{name} needs gradients at their own scale, and a fused {type(optimizer).__name__} takes those of "
            f"precision={trainer.precision!r} still scaled: make it with fused=False, or train with "
            'precision="bf16-mixed".'
        )
    return optimizer
