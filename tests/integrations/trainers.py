"""A tiny GPT-2 in a `Trainer`, and the same training as a plain loop."""

from dataclasses import dataclass, field

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import default_collate

pytest.importorskip("transformers")

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)

import edgewise as ew
from edgewise.integrations.transformers import EdgeWarmupCallback

VOCABULARY, LENGTH, BATCH, LR = 61, 12, 4, 3e-3


def tiny_gpt2(dropout=0.0):
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=32,
        n_layer=2,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def sentences(num=160):
    """Sequences that repeat themselves, of which the first few tokens are not predicted, each another number."""
    generator = torch.Generator().manual_seed(2)
    rows = []
    for i in range(num):
        word = torch.randint(VOCABULARY, (3,), generator=generator)
        ids = word.repeat(LENGTH // 3)
        labels = ids.clone()
        labels[: 2 + i % 3] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def arguments(folder, **options):
    defaults = {
        "output_dir": str(folder),
        "max_steps": 20,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(**defaults | options)


def sgd(model, lr=LR):
    return torch.optim.SGD(model.parameters(), lr=lr)


def adamw(model, lr=LR):
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))


def trainer_of(folder, *, dropout=0.0, optimizer=adamw, lr=LR, cls=Trainer, **options):
    model = tiny_gpt2(dropout)
    trainer = cls(
        model,
        arguments(folder, learning_rate=lr, **options),
        train_dataset=sentences(),
        optimizers=(optimizer(model, lr), None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def linear(**options):
    return lambda optimizer: ew.LinearWarmup(optimizer, **options)


def warmed(folder, warmup=ew.EdgeWarmup, **options):
    """A trainer with an EdgeWarmupCallback, and the callback."""
    trainer = trainer_of(folder, **options)
    callback = EdgeWarmupCallback(trainer, warmup)
    trainer.add_callback(callback)
    return trainer, callback


def parameters(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


def equal(one, other):
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def column(trainer, name):
    """A column of what the trainer logged, where there is one."""
    return [row[name] for row in trainer.state.log_history if name in row]


def run(trainer, **options):
    """The rates and losses of a training."""
    trainer.train(**options)
    return column(trainer, "learning_rate"), column(trainer, "loss")


@dataclass
class PlainLoop:
    """What `Trainer` does, in torch: accumulation by the number of tokens, clipping, autocast, a schedule after it."""

    num_steps: int = 20
    accumulation: int = 1
    clip: float = 1.0
    bf16: bool = False
    schedule: str = "linear"
    lr: float = LR
    optimizer: object = adamw
    make: object = ew.EdgeWarmup
    rates: list = field(default_factory=list)
    losses: list = field(default_factory=list)

    def run(self):
        model = tiny_gpt2()
        model.train()
        optimizer = self.optimizer(model, self.lr)
        kwargs = {"num_steps": self.num_steps} if self.make is ew.EdgeWarmup else {}
        warmup = self.make(optimizer, **kwargs)
        if isinstance(warmup, ew.CatapultWarmup):  # which does not know by itself how long the run is
            schedule = warmup.then_until(self.num_steps, self._decay)
        else:
            decay = LambdaLR(optimizer, lambda update: self._decay(warmup.length + update, warmup.length))
            schedule = warmup.then(decay)
        rows = sentences()
        batches = [default_collate(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
        for update in range(self.num_steps):
            first = update * self.accumulation
            chosen = [batches[i % len(batches)] for i in range(first, first + self.accumulation)]
            self._update(model, optimizer, warmup, chosen)
            schedule.step()
        self.warmup, self.model = warmup, model
        return self

    def _update(self, model, optimizer, warmup, batches):
        num_tokens = sum(batch["labels"][:, 1:].ne(-100).sum() for batch in batches)

        def loss_of(batch):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
                return model(**batch, num_items_in_batch=num_tokens).loss.float()

        optimizer.zero_grad()
        losses = [loss_of(batch) for batch in batches]
        for loss in losses:
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
        total = sum(loss.detach() for loss in losses)
        warmup.observe(lambda: sum(loss_of(batch) for batch in batches), loss=total)
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.losses.append(total.item())
        optimizer.step()

    def _decay(self, update, length):
        dummy = torch.optim.SGD([torch.zeros(1)], lr=self.lr)
        return get_scheduler(self.schedule, dummy, length, self.num_steps).lr_lambdas[0](update)


class Stopping(TrainerCallback):
    """Ends the training at a step, in one way or the other."""

    def __init__(self, step, error=None):
        self.step, self.error = step, error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            if self.error:
                raise self.error
            control.should_training_stop = True
