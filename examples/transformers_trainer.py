"""Hugging Face's Trainer: a small GPT-2 learns to repeat sequences of numbers.

EdgeWarmup finds the rate to train at, then the Trainer's own cosine leads it to 0; a monitor follows the sharpness.
Seconds on a CPU: python examples/transformers_trainer.py
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from edgewise.integrations.transformers import EdgeWarmupCallback, MonitorCallback  # edgewise


def main() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=3,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            logging_steps=32,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, train_dataset=sequences(2048))
        callback = EdgeWarmupCallback(trainer)  # edgewise
        trainer.add_callback(callback)  # edgewise
        trainer.add_callback(MonitorCallback(trainer, every=64, rtol=0.1))  # edgewise
        trainer.train()
    print(callback.warmup.report().summary())  # edgewise


def sequences(num: int) -> list[dict[str, torch.Tensor]]:
    """Eight numbers, and the same again: only the second half is to be predicted."""
    first = torch.randint(0, 32, (num, 8))
    ids = torch.cat([first, first], 1)
    labels = ids.clone()
    labels[:, :8] = -100
    return [{"input_ids": i, "labels": j} for i, j in zip(ids, labels, strict=True)]


if __name__ == "__main__":
    main()
