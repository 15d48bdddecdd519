"""What the documents promise: their code runs, their lists are complete.

Oracle: the documents themselves, executed. Cannot see: whether a sentence is true, or a measured figure up to date.
"""

import re
from pathlib import Path

import pytest
import torch

import edgewise as ew

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def loss_fn(model, batch):
    inputs, targets = batch
    return torch.nn.functional.mse_loss(model(inputs), targets)


def test_readme_examples_run_in_order():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    loader = [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(5)]
    names = {"model": model, "loader": loader, "loss_fn": loss_fn}
    before = [p.clone() for p in model.parameters()]
    for block in PYTHON_BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert len(PYTHON_BLOCKS) == 2
    assert all(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert names["warmup"].start.status in (ew.Status.FOUND, ew.Status.ABOVE_MAX_LR)
    assert names["found"].converged


def test_training_example_stays_short():
    """Ten lines that are not blank, besides the imports: the promise of the first screen."""
    lines = [line for line in PYTHON_BLOCKS[0].splitlines() if line and not line.startswith("import")]
    assert len(lines) == 10


def test_every_public_name_is_in_the_reference():
    documented = re.findall(
        r"^::: edgewise\.(?:\w+\.)*(\w+)$", (ROOT / "docs/reference.md").read_text(), flags=re.M
    )
    assert sorted(documented) == sorted(ew.__all__)


@pytest.mark.parametrize("document", ["README.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))])
def test_local_links_and_pictures_exist(document):
    path = ROOT / document if document == "README.md" else ROOT / "docs" / document
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.M)
    assert phony.split() == re.findall(r"^([a-z]+):.*##", makefile, flags=re.M)
    for command in re.findall(r"`?make ([a-z]+)", README):
        assert command in phony.split()
