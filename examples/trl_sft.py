"""TRL's SFTTrainer: a small GPT-2 is taught to answer sums, with the GI-Adam of edgewise.

EdgeWarmup finds the rate to train at, then the trainer's own linear decay leads it to 0; TRL counts tokens and
accuracy as without it. Seconds on a CPU: python examples/trl_sft.py
"""

import random
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import edgewise as ew  # edgewise
from edgewise.integrations.transformers import EdgeWarmupCallback  # edgewise

WORDS = ["<pad>", "<eos>", "plus", "is", *map(str, range(19))]


def main() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=8, n_embd=64, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
    )
    model = GPT2LMHeadModel(config)
    optimizer = ew.GIAdamW(model.parameters(), lr=3e-3)  # edgewise
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model,
            SFTConfig(
                output_dir=folder,
                max_steps=100,
                per_device_train_batch_size=32,
                logging_steps=20,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
            ),
            train_dataset=sums(1000),
            processing_class=tokenizer(),
            optimizers=(optimizer, None),  # edgewise
        )
        trainer.add_callback(EdgeWarmupCallback(trainer))  # edgewise
        trainer.train()


def sums(num: int) -> Dataset:
    """Prompts such as "3 plus 5 is", and their completions."""
    numbers = random.Random(0)
    rows = []
    for _ in range(num):
        a, b = numbers.randrange(10), numbers.randrange(10)
        rows.append({"prompt": f"{a} plus {b} is", "completion": f" {a + b}"})
    return Dataset.from_list(rows)


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a word."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


if __name__ == "__main__":
    main()
