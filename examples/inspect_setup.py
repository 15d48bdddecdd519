"""What `edgewise inspect examples/inspect_setup.py` looks at: a small GPT-2 on the text of Python's own library."""

import random
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT, BATCH = 32, 8


def loss_fn(model, batch):
    """The mean loss: what your training step calls backward() on."""
    return model(input_ids=batch, labels=batch).loss


def windows(number):
    """Batches of bytes, as a data loader gives them."""
    text = b"".join(path.read_bytes() for path in sorted(Path(random.__file__).parent.glob("*.py"))[:40])
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    starts = torch.randint(len(tokens) - CONTEXT, (number, BATCH))
    return [torch.stack([tokens[i : i + CONTEXT] for i in batch]) for batch in starts]


def setup():
    """Everything as it is when your training begins."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)
    return model, optimizer, loss_fn, windows(150)


if __name__ == "__main__":
    import edgewise as ew  # edgewise

    print(ew.inspect(*setup(), max_updates=30).summary())  # edgewise
