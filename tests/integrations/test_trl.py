"""edgewise in TRL's trainers, which count tokens, average metrics and generate text on the way.

Ladder: the sentences themselves, counted → the same training with the rates replayed, or without a monitor, bit for bit
→ `ew.sharpness` of the model's own loss. Cannot see: engines for generating, vision.
"""

import itertools

import pytest

pytest.importorskip("trl")

import datasets
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import edgewise as ew
from edgewise.integrations.transformers import EdgeWarmupCallback, MonitorCallback
from integrations.trainers import LR, adamw, column, tiny_gpt2

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}Warning") for kind in ("Deprecation", "Future", "User")
]

WORDS = [f"w{i}" for i in range(58)]
STEPS, BATCH, ACCUMULATION = 10, 4, 2
TIMES = ("step_time", "runtime", "per_second")


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def sentence(i, start=0):
    """Of 3 to 8 words, so that micro-batches differ in their number of tokens."""
    return " ".join(WORDS[(7 * i + j * (1 + i % 3) + start) % len(WORDS)] for j in range(3 + i % 6))


def config_of(cls, folder, **options):
    defaults = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "learning_rate": LR,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }
    return cls(**defaults | options)


def finished(trainer):
    trainer.remove_callback(PrinterCallback)
    return trainer


def sft(folder, tokenizer, *, schedule=None, dropout=0.0, **options):
    model = tiny_gpt2(dropout)
    return finished(
        SFTTrainer(
            model,
            config_of(SFTConfig, folder, **options),
            train_dataset=datasets.Dataset.from_list([{"text": sentence(i)} for i in range(80)]),
            processing_class=tokenizer,
            optimizers=_optimizers(model, schedule),
        )
    )


def dpo(folder, tokenizer, *, schedule=None):
    model = tiny_gpt2()
    rows = [
        {"prompt": " ".join(WORDS[:2]), "chosen": sentence(i), "rejected": sentence(i, 5)} for i in range(80)
    ]
    return finished(
        DPOTrainer(
            model,
            ref_model=tiny_gpt2(),
            args=config_of(DPOConfig, folder),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            optimizers=_optimizers(model, schedule),
        )
    )


def grpo(folder, tokenizer, *, schedule=None):
    try:
        from trl import GRPOConfig, GRPOTrainer  # noqa: PLC0415
    except RuntimeError as error:  # it imports trackers that are installed
        pytest.skip(str(error))
    model = tiny_gpt2()
    options = {"num_generations": 4, "max_completion_length": 5}
    return finished(
        GRPOTrainer(
            model,
            reward_funcs=lambda completions, **kwargs: [float(len(set(text))) for text in completions],
            args=config_of(GRPOConfig, folder, **options),
            train_dataset=datasets.Dataset.from_list(
                [{"prompt": " ".join(WORDS[i : i + 3])} for i in range(40)]
            ),
            processing_class=tokenizer,
            optimizers=_optimizers(model, schedule),
        )
    )


def _optimizers(model, rates):
    """An optimizer and a schedule, or with `rates` those that replay them."""
    if rates is None:
        return adamw(model), None
    optimizer = adamw(model, 1.0)
    return optimizer, LambdaLR(optimizer, lambda update: rates[min(update, STEPS - 1)])


def rows(trainer):
    """What the trainer logs at each step, without times and what edgewise adds."""
    return [
        {
            name: value
            for name, value in row.items()
            if not name.startswith("edgewise/") and not any(time in name for time in TIMES)
        }
        for row in trainer.state.log_history
        if "learning_rate" in row
    ]


@pytest.mark.parametrize("make", [sft, dpo, grpo])
def test_losses_counts_and_metrics_are_those_of_the_rates_alone(make, tokenizer, tmp_path):
    warmed = make(tmp_path, tokenizer)
    critical = make is grpo  # whose loss says nothing from one update to the next
    callback = EdgeWarmupCallback(
        warmed,
        (lambda o: ew.LinearWarmup(o, warmup_steps=4, lr_init="critical")) if critical else ew.EdgeWarmup,
    )
    warmed.add_callback(callback)
    warmed.train()
    assert callback.warmup.num_forwards > 0
    assert critical or callback.warmup.fallback is None
    replayed = make(tmp_path, tokenizer, schedule=column(warmed, "learning_rate"))
    replayed.train()
    assert rows(warmed) == rows(replayed)
    assert len(rows(warmed)) == STEPS
    assert "num_tokens" in rows(warmed)[0]


def test_tokens_are_counted_once(tokenizer, tmp_path):
    trainer = sft(tmp_path, tokenizer)
    trainer.add_callback(EdgeWarmupCallback(trainer))
    trainer.add_callback(MonitorCallback(trainer, every=5, rtol=0.3))
    trainer.train()
    lengths = [len(sentence(i).split()) + 1 for i in range(STEPS * BATCH * ACCUMULATION)]  # and the end
    size = BATCH * ACCUMULATION
    per_update = [sum(lengths[i : i + size]) for i in range(0, STEPS * size, size)]
    assert column(trainer, "num_tokens") == list(itertools.accumulate(per_update))


def test_a_monitor_changes_nothing_and_its_rows_take_no_metric_away(tokenizer, tmp_path):
    plain = sft(tmp_path, tokenizer, dropout=0.1)
    plain.train()
    followed = sft(tmp_path, tokenizer, dropout=0.1)
    followed.add_callback(MonitorCallback(followed, every=5, rtol=0.3))
    followed.train()
    assert rows(plain) == rows(followed)
    assert column(followed, "edgewise/step") == [0, 5]


def test_through_the_fused_head_the_sharpness_is_that_of_the_loss(tokenizer, tmp_path):
    """TRL computes loss and logits in one, with a derivative of its own; it divides by all tokens with a label."""
    trainer = sft(tmp_path, tokenizer, max_steps=1)
    model = tiny_gpt2()
    trainer.add_callback(MonitorCallback(trainer, every=1, rtol=0.03, measure=("sharpness",)))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(BATCH * ACCUMULATION)])
    trainer.train()
    num = batch["labels"].ne(-100).sum()
    assert num == sum(len(sentence(i).split()) + 1 for i in range(BATCH * ACCUMULATION))
    expected = ew.sharpness(
        model, lambda model, batch: model(**batch, num_items_in_batch=num).loss, [batch], rtol=1e-3
    ).value
    assert column(trainer, "edgewise/sharpness") == [pytest.approx(expected, rel=0.05)]
