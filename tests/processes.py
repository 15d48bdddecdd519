"""What runs in the processes of tests/test_distributed.py: two of them, over gloo on the CPU."""

import copy
import datetime
import multiprocessing
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import edgewise as ew
from cases import BY_NAME, MLP, mse, train_step
from edgewise import ranks
from edgewise.critical import Searching, search_critical_lr
from edgewise.isolation import isolated
from edgewise.loss.objective import Objective
from edgewise.ranks import ranks_of
from oracles import bits

NUM = 2
PATIENCE = 60  # seconds, after which the processes hang
COLLECTIVE_PATIENCE = 20  # seconds, after which one of their collective calls does
SHARES = (slice(0, 2), slice(2, 3))  # of a case's batches, of 5, 9 and 2 samples
EVEN_SHARES = (slice(0, 1), slice(1, 2))  # as many for each rank, not as large


def run(body, folder: Path) -> list[dict]:
    """Run `body(rank)` in each process and return what they return; fail if one raises or hangs."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, body, folder)) for rank in range(NUM)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    assert not hanging, f"ranks {hanging} hang"
    ends = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(NUM)]
    failures = [end for end in ends if isinstance(end, str)]
    assert not failures, "\n".join(failures)
    return ends


def _process(rank: int, body, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=NUM,
        timeout=datetime.timedelta(seconds=COLLECTIVE_PATIENCE),
    )
    try:
        end = body(rank)
    except Exception:
        end = traceback.format_exc()
    torch.save(end, folder / f"{rank}.pt")
    if not isinstance(end, str):
        dist.barrier()
        dist.destroy_process_group()


def error_of(function, *args, **kwargs) -> str:
    """Return class and text of what a call raises."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def outcome(result) -> dict:
    return {
        "value": result.value,
        "values": result.values,
        "vectors": result.vectors,
        "num_hvps": result.num_hvps,
        "hvp": result.hvp,
        "reason": result.hvp_reason,
        "converged": result.converged,
    }


def failing(rank: int, call: int, failure):
    """MLP's loss, which fails on rank 1 at a call."""
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        loss = mse(model, batch)
        return failure(loss) if (rank, len(calls)) == (1, call) else loss

    return loss_fn


def out_of_cheese(loss):
    raise KeyError("out of cheese")


def not_a_number(loss):
    return loss * torch.nan


class Clock:
    """Runs at a speed of its own."""

    def __init__(self, speed: float) -> None:
        self.now, self.speed = 0.0, speed

    def __call__(self) -> float:
        self.now += 0.1 * self.speed
        return self.now


class OnceOnly(torch.autograd.Function):
    """The identity, with a first derivative only."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient.clone()


def once_only(model, batch):
    return mse(lambda x: OnceOnly.apply(model(x)), batch)


def followed(model, optimizer, batch, rank: int) -> list[tuple[int, float, int]]:
    """Steps, values and products of a monitor whose clocks run apart."""
    rows = []
    monitor = ew.Monitor(model, optimizer, mse, max_overhead=0.2, measure=("sharpness",), log=rows.append)
    monitor._clock = Clock(1.0 + 5 * rank)
    for step in range(30):
        monitor.observe(batch)
        monitor._clock.now += 1.0 + 0.37 * step if rank else 3.0
    return [(row.step, row.sharpness, row.num_hvps) for row in rows]


def critical(model, mine) -> dict:
    """Critical rates after three steps: on this rank's batches, and by a closure on its first."""
    optimizer = adamw(model)
    for _ in range(3):
        train_step(model, optimizer, mse, mine[0])
    computed = ew.critical_lr(model, optimizer, mse, batches=mine, rtol=1e-3)
    optimizer.zero_grad()
    mse(model, mine[0]).backward()
    return {
        "computed": computed,
        "closure": search_critical_lr(optimizer, lambda: mse(model, mine[0]), Searching(rtol=1e-3)),
        "current": ew.critical_lr(model, optimizer, mse, mine[0], gradient="current", rtol=1e-3),
    }


WITHOUT_LOSS = "edge, loss not given"
WARMUPS = {
    "catapult": lambda optimizer: ew.CatapultWarmup(optimizer, smoothing=0.5),
    "edge": ew.EdgeWarmup,
    WITHOUT_LOSS: ew.EdgeWarmup,
}


def warmed_rates(model, loss_fn, kind) -> list[float]:
    """The rates of a warmup that looks at the loss; each rank gives it its own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
    warmup = WARMUPS[kind](optimizer)
    rates = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = loss_fn(model)
        loss.backward()
        warmup.observe(lambda: loss_fn(model), loss=None if kind == WITHOUT_LOSS else loss)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warmup.step()
    return rates


def warmed(model, mine) -> dict[str, list[float]]:
    before = [p.detach().clone() for p in model.parameters()]
    rates = {}
    for kind in WARMUPS:
        rates[kind] = warmed_rates(model, lambda model: mse(model, mine[0]), kind)
        with torch.no_grad():
            for p, start in zip(model.parameters(), before, strict=True):
                p.copy_(start)
    return rates


def trained_state(model, optimizer, batch, measure) -> list[bytes]:
    """The bits after five steps, with a measurement before the second and the fourth update."""
    for step in range(5):
        optimizer.zero_grad()
        mse(model, batch).backward()
        if step % 2:
            measure(model, optimizer)
        optimizer.step()
    tensors = [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())]
    return [bits(t.to_local() if isinstance(t, DTensor) else t) for t in tensors]


def measure_all(batch):
    def measure(model, optimizer):
        ew.sharpness(model, mse, [batch], max_hvps=4)
        ew.preconditioned_sharpness(model, mse, [batch], optimizer, max_hvps=4)
        ew.critical_lr(model, optimizer, mse, batch)
        ew.critical_lr(model, optimizer, mse, batch, gradient="current")
        search_critical_lr(optimizer, lambda: mse(model, batch), Searching())
        error_of(ew.sharpness, model, lambda m, b: mse(m, b) * torch.nan, [batch])

    return measure


def nothing(model, optimizer):
    pass


def nothing_of(model):
    pass


def adamw(model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.3)


# Whole parameters


def build_ddp(rank: int, name: str = MLP.name):
    """Return case, wrapped model and this rank's batches."""
    case = BY_NAME[name]
    model, batches = case.build()
    return case, DistributedDataParallel(model.eval()), batches[SHARES[rank]]


def ddp(rank: int) -> dict:
    """All that is asked of DistributedDataParallel."""
    _, model, mine = build_ddp(rank)
    found = {
        name: outcome(ew.sharpness(*ddp_arguments(rank, name), rtol=1e-8, num=2))
        for name in ("tanh-mlp-mse", "attention-xent", "conv-batchnorm-xent", "tied-mse")
    }
    found["evaluated"] = evaluated(model, mine)
    for route in ("forward", "difference", "checked"):
        found[route] = outcome(ew.sharpness(model, mse, mine, rtol=1e-8, num=2, hvp=route))
    found["budget"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-8, num=2, max_graph_bytes=10_000))
    found["block"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-8, params="0.*"))
    found["float32"] = outcome(ew.sharpness(copy.deepcopy(model).float(), mse, mine, dtype=torch.float64))
    plain = ew.sharpness(model, mse, mine, rtol=1e-8)
    found["warm"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-8, start=plain))
    found["one rank lacks a derivative"] = outcome(
        ew.sharpness(model, once_only if rank else mse, mine, rtol=1e-6)
    )
    with ew.hessian(model, mse, mine) as operator:
        found["scipy"] = operator.to_scipy().matvec(torch.ones(operator.size).double().numpy())
    found["critical"] = critical(*build_ddp(rank)[1:])
    found["warmed"] = warmed(*build_ddp(rank)[1:])
    return found | ddp_training(rank) | ddp_errors(rank)


def evaluated(model, batches) -> dict:
    """What an objective of MLP's loss returns itself."""
    with isolated(model) as snapshot:
        objective = Objective(model, mse, batches, snapshot=snapshot)
        return {"value": objective.value(), "gradient": objective.gradient(), "size": objective.size}


def ddp_arguments(rank: int, name: str):
    case, model, mine = build_ddp(rank, name)
    return model, case.loss_fn, mine


def ddp_training(rank: int) -> dict:
    _, model, mine = build_ddp(rank)
    optimizer = adamw(model)
    for i in range(3):
        train_step(model, optimizer, mse, mine[i % len(mine)])
    found = {
        "preconditioned": outcome(ew.preconditioned_sharpness(model, mse, mine, optimizer, rtol=1e-8)),
        "trained": (copy.deepcopy(model.module), copy.deepcopy(optimizer.state_dict())),
        "followed": followed(model, optimizer, mine[0], rank),
    }
    for name, measure in (("measured", measure_all(mine[0])), ("unmeasured", nothing)):
        _, model, mine = build_ddp(rank)
        found[name] = trained_state(model, adamw(model), mine[0], measure)
    return found


def observed(model, mine, loss_fn) -> None:
    """Let a warmup see a loss for the first time."""
    warmup = ew.EdgeWarmup(adamw(model))
    mse(model, mine[0]).backward()
    warmup.observe(lambda: loss_fn(model, mine[0]))


def ddp_errors(rank: int) -> dict:
    _, model, mine = build_ddp(rank)
    random = iter(torch.rand(99).double())
    return {
        "no batches on rank 1": error_of(ew.sharpness, model, mse, [] if rank else mine),
        "an iterator on rank 1": error_of(ew.sharpness, model, mse, iter(mine) if rank else mine),
        "no size": error_of(ew.sharpness, model, lambda m, b: mse(m, mine[0]), [3]),
        "raised at first": error_of(ew.sharpness, model, failing(rank, 1, out_of_cheese), mine),
        "raised in a product": error_of(
            ew.sharpness, model, failing(rank, 7, out_of_cheese), mine, hvp="difference"
        ),
        "not a number": error_of(ew.sharpness, model, failing(rank, 2, not_a_number), mine),
        "does not repeat": error_of(
            ew.sharpness, model, lambda m, b: mse(m, b) * (next(random) if rank else 1), mine
        ),
        "no batches to follow": error_of(ew.Monitor, model, adamw(model), mse, batches=[] if rank else mine),
        "a wrapped model inside": error_of(ew.sharpness, nn.Sequential(model), mse, mine),
        "not a number in a warmup": error_of(observed, model, mine, failing(rank, 2, not_a_number)),
        "unwrapped": ranks_of(model.module).num,
    }


# Closures that see no other rank

FIRST_LOOKS = {
    "critical": lambda optimizer: ew.LinearWarmup(optimizer, warmup_steps=9, lr_init="critical"),
    "catapult": ew.CatapultWarmup,
    "edge": ew.EdgeWarmup,
}


def apart(rank: int) -> dict:
    """Warmups whose closures return this rank's own loss, of one model and of models of their own."""
    ranks._PATIENCE = 0.5
    found: dict = {}
    for name, make in FIRST_LOOKS.items():
        for give_loss in (True, False):
            _, model, mine = build_ddp(rank)
            found["inside", name, give_loss] = looked(make, model, model.module, mine[0], give_loss)
            _, model, mine = build_ddp(rank)
            found["wrapped", name, give_loss] = looked(make, model, model, mine[0], give_loss)
        _, model, mine = build_ddp(rank)
        found["averaged by hand", name] = looked(make, model.module, model.module, mine[0], True, average)
        for seeds in ("one start", "two starts"):
            torch.manual_seed(rank if seeds == "two starts" else 0)
            own = BY_NAME[MLP.name].make_model().double()
            found[seeds, name] = looked(make, own, own, mine[0], True)
        own = BY_NAME[MLP.name].make_model().double()
        found["on one rank", name] = "" if rank else looked(make, own, own, mine[0], True)
        dist.barrier()
    return found


def average(model) -> None:
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= NUM


def looked(make, trained, called, batch, give_loss, after_backward=nothing_of) -> str:
    """Return what the first look of a warmup raises."""
    warmup = make(torch.optim.SGD(trained.parameters(), lr=0.5))
    loss = mse(trained, batch)
    loss.backward()
    after_backward(trained)
    return error_of(warmup.observe, lambda: mse(called, batch), loss=loss.detach() if give_loss else None)


# Sharded parameters


def build_fsdp(rank: int, name: str = MLP.name, mesh=None):
    """Return case, sharded model (in two groups, where it has layers) and this rank's batch."""
    case = BY_NAME[name]
    model, batches = case.build()
    model.eval()
    mesh = mesh or init_device_mesh("cpu", (NUM,))
    if isinstance(model, nn.Sequential):
        fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return case, model, batches[EVEN_SHARES[rank]]


def fsdp(rank: int) -> dict:
    """All that is asked of fully_shard."""
    found = {}
    for name in ("tanh-mlp-mse", "attention-xent", "tied-mse", "linear-bias-unused"):
        case, model, mine = build_fsdp(rank, name)
        found[name] = outcome(ew.sharpness(model, case.loss_fn, mine, rtol=1e-7, num=2))
    _, model, mine = build_fsdp(rank)
    found["evaluated"] = evaluated(model, mine)
    first = ew.sharpness(model, mse, mine, rtol=1e-6)
    found["warm"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-6, start=first))
    found["block"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-7, params="0.*"))
    found["checked"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-7, hvp="checked"))
    with torch.no_grad():
        model(mine[0][0])  # modules now hold whole parameters
    found["after a forward"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-7, start=first))
    two = [tuple(t[:2] for t in mine[0]), tuple(t[2:] for t in mine[0])]
    found["several batches"] = outcome(ew.sharpness(model, mse, two, rtol=1e-7))
    found["critical"] = critical(*build_fsdp(rank)[1:])
    found["warmed"] = warmed(*build_fsdp(rank)[1:])
    return found | fsdp_training(rank) | fsdp_errors(rank)


def fsdp_training(rank: int) -> dict:
    _, model, mine = build_fsdp(rank)
    optimizer = adamw(model)
    for _ in range(3):
        train_step(model, optimizer, mse, mine[0])
    found = {
        "preconditioned": outcome(ew.preconditioned_sharpness(model, mse, mine, optimizer, rtol=1e-7)),
        "trained": whole(model, optimizer),
        "followed": followed(model, optimizer, mine[0], rank),
    }
    for name, measure in (("measured", measure_all(mine[0])), ("unmeasured", nothing)):
        _, model, mine = build_fsdp(rank)
        found[name] = trained_state(model, adamw(model), mine[0], measure)
    _, model, mine = build_fsdp(rank)
    seen = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(seen.append)
    ew.sharpness(model, mse, mine)
    found["hooks in a measurement"] = len(seen)
    mse(model, mine[0]).backward()
    found["hooks in training"] = len(seen)
    return found


def whole(model, optimizer) -> tuple[dict, dict]:
    """A sharded model's state and its optimizer's, as those of a model that is not."""
    full = lambda value: value.full_tensor() if isinstance(value, DTensor) else value
    state = optimizer.state_dict()
    state["state"] = {i: {k: full(v) for k, v in entry.items()} for i, entry in state["state"].items()}
    return {name: full(value) for name, value in model.state_dict().items()}, state


def fsdp_errors(rank: int) -> dict:
    _, model, mine = build_fsdp(rank)
    errors = {
        "other numbers of batches": error_of(ew.sharpness, model, mse, mine * (1 + rank)),
        "not a number": error_of(ew.sharpness, model, failing(rank, 4, not_a_number), mine),
        "raised after the forward": error_of(ew.sharpness, model, failing(rank, 5, out_of_cheese), mine),
        "no graph": error_of(ew.sharpness, model, failing(rank, 3, torch.detach), mine),
        "reverse": error_of(ew.sharpness, model, mse, mine, hvp="reverse"),
        "forward": error_of(ew.sharpness, model, mse, mine, hvp="forward"),
        "dtype": error_of(ew.sharpness, model, mse, mine, dtype=torch.float32),
        "max_graph_bytes": error_of(ew.sharpness, model, mse, mine, max_graph_bytes=10**9),
        "still well": ew.sharpness(model, mse, mine, rtol=1e-6).converged,
    }
    with ew.hessian(model, mse, mine) as operator:
        errors["scipy"] = error_of(operator.to_scipy)
    model.set_requires_gradient_sync(False)
    errors["unsynchronized"] = error_of(ew.sharpness, model, mse, mine)
    _, model, mine = build_fsdp(rank)
    for module in model.modules():
        if isinstance(module, type(model)) or module is model[0]:
            module.set_gradient_divide_factor(1.0)
    errors["other scale"] = error_of(ew.sharpness, model, mse, mine)
    grid = init_device_mesh("cpu", (1, NUM), mesh_dim_names=("replicas", "shards"))
    errors["two dimensions"] = error_of(ew.sharpness, *build_fsdp(rank, mesh=grid)[1:2], mse, mine)
    return errors


# An optimizer over shards

GI_ADAMS = {
    f"{cls.__name__}, {kernel}, {own}": (cls, {**kernel, **own})
    for cls, decay in ((ew.GIAdamW, 0.3), (ew.GIAdam, 0.3), (ew.GIAdam, 0.0))
    for kernel in ({}, {"foreach": True}, {"fused": True})
    for own in (
        {"scale": 2.0, "weight_decay": decay},
        {"per_entry": True, "weight_decay": decay, "amsgrad": True},
    )
}


def embedding() -> nn.Module:
    """A model whose rows, and so entries, get their first gradients late; 7 rows do not split evenly."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 1)).double()


def embedding_loss(model, step: int, rank: int):
    """Of rank and step: the ranks see other rows."""
    rows = torch.tensor([step % 3 + rank, 3 * rank])
    return (model(rows) - 1.0 - rank).square().mean()


def train_embedding(cls, options, ranks, *, scaled: bool, mesh=None) -> list:
    """The parameters after five steps on the mean loss of `ranks`; the scaler rejects two more steps."""
    model = embedding() if mesh is None else fully_shard(embedding(), mesh=mesh)
    optimizer = cls(model.parameters(), lr=0.1, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    for step in range(5):
        for factor in (torch.inf, 1.0) if scaled and step in (0, 2) else (1.0,):
            optimizer.zero_grad()
            loss = sum(embedding_loss(model, step, rank) for rank in ranks) / len(ranks)
            scaler.scale(loss * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


def gi_adam(rank: int) -> dict:
    """Parameters trained by GI-Adam on shards, plainly and with a GradScaler."""
    mesh = init_device_mesh("cpu", (NUM,))
    return {
        (name, scaled): train_embedding(cls, options, [rank], scaled=scaled, mesh=mesh)
        for name, (cls, options) in GI_ADAMS.items()
        for scaled in (False, True)
    }
