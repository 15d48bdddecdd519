"""Inspections of GPT-2, BERT, ViT, T5 and Llama, made from configurations, on a CPU.

Ladder: each question has a number; model, optimizer and random state are bit for bit what they were; the sharpness
in float64. Cannot see: whether a rate suggested for a tiny network is a good one.
"""

import pytest
import torch

import edgewise as ew
from edgewise.advice.findings import QUESTIONS

pytest.importorskip("transformers")
import transformers as hf

TOKENS, LENGTH, ROWS = 64, 8, 4
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def gpt2():
    config = hf.GPT2Config(
        vocab_size=TOKENS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return hf.GPT2LMHeadModel(config)


def bert():
    return hf.BertForMaskedLM(hf.BertConfig(vocab_size=TOKENS, max_position_embeddings=LENGTH, **SMALL))


def vit():
    return hf.ViTForImageClassification(hf.ViTConfig(image_size=8, patch_size=4, num_labels=5, **SMALL))


def t5():
    config = hf.T5Config(
        vocab_size=TOKENS, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return hf.T5ForConditionalGeneration(config)


def llama():
    config = hf.LlamaConfig(
        vocab_size=TOKENS,
        max_position_embeddings=LENGTH,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=0,
        **SMALL,
    )
    return hf.LlamaForCausalLM(config)


MODELS = {"gpt2": gpt2, "bert": bert, "vit": vit, "t5": t5, "llama": llama}


def loss_fn(model, batch):
    return model(**batch).loss


def batches_for(name, number=12):
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        labels = torch.randint(5, (number, ROWS), generator=generator)
        pixels = torch.randn(number, ROWS, 3, 8, 8, generator=generator) + labels[..., None, None, None]
        return [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]
    rows = torch.randint(
        4, (number, ROWS, LENGTH), generator=generator
    )  # that it is few of all can be learned
    return [{"input_ids": tokens, "labels": tokens} for tokens in rows]


@pytest.fixture(params=MODELS)
def setup(request):
    torch.manual_seed(0)
    model = MODELS[request.param]().train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3), batches_for(request.param)


def test_every_question_is_answered_and_nothing_is_changed(setup):
    model, optimizer, batches = setup
    result = ew.assert_no_side_effects(
        model, optimizer, lambda: ew.inspect(model, optimizer, loss_fn, batches, max_updates=40)
    )
    measured = {line.question for line in result.findings if line.ok}
    assert measured == set(QUESTIONS), result.summary()
    assert result.ok
    found = {line.name: line for line in result.findings}
    edge = found["rate × preconditioned sharpness"]
    assert edge.ok, edge
    in_double = ew.preconditioned_sharpness(model, loss_fn, batches[:1], optimizer, dtype=torch.float64)
    assert edge.evidence["sharpness"] == pytest.approx(in_double.value, rel=0.03)
    assert found["critical rate of the coming update"].ok
    assert sum(found["parameters that hold the top eigenvector"].evidence["shares"].values()) <= 1 + 1e-6
    assert found["variation of the loss at one point"].value == 0  # dropout repeats
    assert found["modules in eval mode"].advice == ""


def test_a_model_as_from_pretrained_is_in_eval_mode():
    model = gpt2().eval()
    optimizer = ew.GIAdamW(model.parameters(), lr=1e-3)
    result = ew.inspect(model, optimizer, loss_fn, batches_for("gpt2"), max_updates=20)
    (found,) = [line for line in result.findings if line.name == "modules in eval mode"]
    assert "from_pretrained" in found.advice
