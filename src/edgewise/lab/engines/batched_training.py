"""Train cells of one architecture as one batch: stacked parameters, a rate and a warmup for each cell.

Shapes: K cells, B samples of a batch, T steps.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import SGD, Optimizer

from edgewise.lab import data, models, plugins
from edgewise.lab.configs import RunConfig
from edgewise.lab.data import Dataset
from edgewise.lab.models.parameterization import parameter_groups
from edgewise.lab.training import (
    Batch,
    Evaluations,
    RunResult,
    batch_indices,
    loss_function,
    make_optimizer,
    make_schedule,
    outcome_of,
    peak_memory,
    reset_peak_memory,
    target_rate,
)

_STEPS_BETWEEN_REPORTS = 20

Report = Callable[[int], None]  # steps done


def is_batchable(config: RunConfig) -> bool:
    """Return whether a step of the run is a function of its own batch and rate alone.

    A CNN's BatchNorm has statistics of its own in each cell, and of a network of one's own nothing is known.
    """
    if config.model.name == "cnn" or config.model.name in plugins.MODELS:
        return False
    looks = not config.warmup.traits.has_length or config.warmup.lr_init == "critical"
    return config.optimizer.traits.elementwise and not (config.measure or looks or config.data.augment)


def train_together(configs: Sequence[RunConfig], on_step: Report = lambda steps: None) -> list[RunResult]:
    """Train configs of one kind as one batch, each as `edgewise.lab.training.train` would."""
    started = time.perf_counter()
    reset_peak_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = data.load(configs[0].data).to(device)
    networks = [_network(config, dataset) for config in configs]
    cells = _Cells(configs, networks, device)
    targets = [target_rate(config) for config in configs]
    schedules = list(map(_Schedule, configs, networks, targets))
    shown = torch.tensor([schedule.shown for schedule in schedules], dtype=torch.float64)  # (cells, steps)
    rates = shown / cells.first_factor
    begun = time.perf_counter()
    evaluations = [Evaluations(config, dataset) for config in configs]

    def look(num_updates: int, alive: Tensor) -> None:
        if not evaluations[0].due(num_updates):  # the same for all
            return
        for i in alive.nonzero().flatten().tolist():
            cells.copy_to(i, networks[i])
            evaluations[i].look(networks[i])

    losses = _train_cells(cells, rates.to(device, torch.float32), _batches(configs, dataset), look, on_step)
    seconds, stepping = (
        (time.perf_counter() - since) / len(configs) for since in (started, begun)
    )  # its share
    results = []
    for i, config in enumerate(configs):
        cells.copy_to(i, networks[i])
        rows = _rows(losses[i], shown[i])
        updates = sum(math.isfinite(row["train_loss"]) for row in rows)
        optimizer = schedules[i].optimizer_after(updates)
        outcome = outcome_of(config, rows, networks[i], dataset, optimizer, targets[i], evaluations[i])
        outcome |= {"warmup": schedules[i].report, "seconds": seconds}
        if config.schedule_steps is not None:
            pace = stepping / config.num_steps
            outcome["cost"] = {"seconds_a_step": pace, "peak_memory": peak_memory()}
        results.append(RunResult(rows=rows, outcome=outcome))
    return results


class _Cells:
    """The stacked parameters of the networks, and an optimizer whose updates are scaled cell by cell."""

    def __init__(
        self, configs: Sequence[RunConfig], networks: Sequence[nn.Module], device: torch.device
    ) -> None:
        self._config, self._template = configs[0], networks[0]
        self._loss = loss_function(self._config.loss)
        names = [name for name, _ in self._template.named_parameters()]
        own = [dict(network.named_parameters()) for network in networks]
        self.parameters = {
            name: torch.stack([weights[name].detach() for weights in own]).requires_grad_() for name in names
        }
        groups = parameter_groups(self._template, lr=1.0, adaptive=self._config.optimizer.traits.adaptive)
        factors = {p: group["lr"] for group in groups for p in group["params"]}
        self._factors = {name: factors[p] for name, p in self._template.named_parameters()}
        self.first_factor: float = groups[0]["lr"]  # of the group whose rate a row shows
        # The optimizer moves zeros at rate 1: the update of all cells, before their own rates. All of them are
        # elementwise, so that cells do not see each other, and linear in the rate.
        self._updates = {name: nn.Parameter(torch.zeros_like(p)) for name, p in self.parameters.items()}
        module = nn.ParameterList(self._updates.values())
        self._optimizer = make_optimizer(replace(self._config.optimizer, weight_decay=0.0), module, 1.0)

    def losses(self, batch: Batch) -> Tensor:
        """Return (cells,): the loss of each on its own batch; inputs and targets are (cells, batch, …)."""

        def loss_of_one(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            def network(x: Tensor) -> Tensor:
                return functional_call(self._template, parameters, (x,))

            return self._loss(network, (inputs, targets))  # type: ignore[arg-type]

        with sdpa_kernel(SDPBackend.MATH):  # the others have no batching rule, and loop
            return vmap(loss_of_one)(self.parameters, *batch)

    def step(self, losses: Tensor, rates: Tensor, alive: Tensor) -> None:
        """Update the cells that are alive, each at its own rate."""
        gradients = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        for update, gradient in zip(self._updates.values(), gradients, strict=True):
            update.grad = gradient.contiguous()  # the fused kernels read strides as those of the parameter
        self._optimizer.step()
        optimizer = self._config.optimizer
        decay = optimizer.weight_decay if optimizer.traits.decayed else 0.0
        with torch.no_grad():
            for name, p in self.parameters.items():
                update = self._updates[name]
                shape = (-1, *(1 for _ in p.shape[1:]))
                rate = (rates * self._factors[name]).view(shape)
                if decay:
                    update.sub_(decay * p)
                p.add_(torch.where(alive.view(shape), rate * update, 0.0))
                update.zero_()

    def copy_to(self, cell: int, network: nn.Module) -> None:
        """Write a cell's parameters into a network."""
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(self.parameters[name][cell])


def _train_cells(
    cells: _Cells,
    rates: Tensor,
    batches: Callable[[int], Batch],
    look: Callable[[int, Tensor], None],
    on_step: Report,
) -> Tensor:
    """Return (cells, steps): the losses, on the CPU; not finite from where a cell diverged.

    Args:
        cells: what is trained.
        rates: (cells, steps).
        batches: of each step.
        look: called with the number of updates, and which cells are alive, (cells,).
        on_step: called now and then with the number of steps.
    """
    losses = torch.full_like(rates, torch.nan)
    alive = torch.ones(len(rates), dtype=torch.bool, device=rates.device)
    for step in range(rates.shape[1]):
        value = cells.losses(batches(step))
        losses[:, step] = value.detach()
        alive &= value.detach().isfinite()
        cells.step(value, rates[:, step], alive)
        look(step + 1, alive)
        if step % _STEPS_BETWEEN_REPORTS == 0:  # also waits for the GPU
            if not alive.any():
                break
            on_step(step)
    return losses.cpu()


class _Schedule:
    """A run's optimizer, the rates that its warmup and decay give it, and what its warmup says of itself."""

    def __init__(self, config: RunConfig, network: nn.Module, target: float) -> None:
        self._optimizer = make_optimizer(config.optimizer, network, target)
        # Stands for it at every step: as many groups, of which each step costs as little as may be.
        groups = [
            {"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in self._rates_of(self._optimizer)
        ]
        stand_in = SGD(groups, lr=target)
        warmup, scheduler = make_schedule(config.warmup, stand_in, config.whole_steps)
        self._rates = [self._rates_of(stand_in)]
        for _ in range(config.num_steps):
            stand_in.step()
            scheduler.step()
            self._rates.append(self._rates_of(stand_in))
        self.shown = [first for first, *_ in self._rates[:-1]]  # at each step, as rows show it
        self.report = asdict(warmup.report())

    def optimizer_after(self, updates: int) -> Optimizer:
        """Return the optimizer with the rates that it has after so many updates."""
        for group, rate in zip(self._optimizer.param_groups, self._rates[updates], strict=True):
            group["lr"] = rate
        return self._optimizer

    @staticmethod
    def _rates_of(optimizer: Optimizer) -> list[float]:
        return [float(group["lr"]) for group in optimizer.param_groups]


def _network(config: RunConfig, dataset: Dataset) -> nn.Module:
    """Return the network as `train` would make it."""
    torch.manual_seed(config.seed)
    return models.build(config.model, dataset).to(dataset.train_inputs.device)


def _batches(configs: Sequence[RunConfig], dataset: Dataset) -> Callable[[int], Batch]:
    """Return step → inputs and targets, (cells, batch, …)."""
    config = configs[0]
    if config.batch_size is None:
        inputs, targets = dataset.train_batch()
        shared = tuple(part.expand(len(configs), *part.shape) for part in (inputs, targets))
        return lambda step: shared  # type: ignore[return-value]
    of_seed = {c.seed: torch.stack(list(batch_indices(c, dataset))) for c in configs}
    indices = torch.stack([of_seed[c.seed] for c in configs]).to(dataset.train_inputs.device)
    return lambda step: dataset.train_batch(indices[:, step])


def _rows(losses: Tensor, rates: Tensor) -> list[dict[str, float]]:
    """Return a row a step, up to the first loss that is not finite."""
    broken = (~losses.isfinite()).nonzero()
    length = int(broken[0]) + 1 if len(broken) else len(losses)
    return [
        {"step": step, "lr": rate, "train_loss": loss}
        for step, (rate, loss) in enumerate(
            zip(rates[:length].tolist(), losses[:length].tolist(), strict=True)
        )
    ]
