"""What the documents promise: their code runs, their lists are complete.

Oracle: the documents themselves, executed. Cannot see: whether a sentence is true, or a measured figure up to date.
"""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edgewise as ew
from edgewise.advice import setup_file

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "integrations").glob("*.md")]
CONCEPTS = sorted((ROOT / "docs" / "concepts").glob("*.py"))  # scripts whose executed form is a page
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHARPNESS = (ROOT / "docs" / "sharpness.md").read_text(encoding="utf-8")
WARMUPS = (ROOT / "docs" / "warmups.md").read_text(encoding="utf-8")
INSPECT = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


PYTHON_BLOCKS = blocks(README)


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
    assert len(PYTHON_BLOCKS) == 3
    assert all(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert names["warmup"].found.lr > 0
    assert names["warmup"].fallback is None
    assert names["found"].converged
    assert names["monitor"].observe(names["batch"]) is None  # the first one has been taken


def test_the_sharpness_page_follows_a_run():
    names = sharpness_page_names()
    exec(compile(blocks(SHARPNESS)[0], "sharpness.md", "exec"), names)
    assert names["rows"][0].sharpness == pytest.approx(names["rows"][0].preconditioned_sharpness)


def test_the_sharpness_page_hands_the_operator_to_scipy():
    names = sharpness_page_names()
    exec(compile(blocks(SHARPNESS)[1], "sharpness.md", "exec"), names)
    with ew.hessian(names["model"], loss_fn, [names["batch"]]) as operator:
        dense = torch.stack([operator.matvec(row) for row in torch.eye(operator.size)])
    assert names["smallest"] == pytest.approx(float(torch.linalg.eigvalsh(dense)[0]), abs=1e-4)


@pytest.mark.peers
def test_the_sharpness_page_hands_the_operator_to_hessian_eigenthings():
    pytest.importorskip("hessian_eigenthings")
    names = sharpness_page_names()
    exec(compile(blocks(SHARPNESS)[2], "sharpness.md", "exec"), names)
    density = names["density"]
    assert float(torch.trapezoid(density.density, density.grid)) == pytest.approx(1, abs=0.05)
    top = ew.preconditioned_sharpness(names["model"], loss_fn, [names["batch"]], names["optimizer"]).value
    assert float(density.raw_eigenvalues.max()) == pytest.approx(top, rel=1e-3)


def test_the_warmup_page_runs_in_order():
    names = sharpness_page_names()
    names |= {"torch": torch, "loader": [names["batch"]] * 5, "total": 20}
    for block in blocks(WARMUPS):
        names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=0.01)
        if "CatapultWarmup" not in block:
            names["warmup"] = ew.CatapultWarmup(names["optimizer"])
        exec(compile(block, "warmups.md", "exec"), names)
    assert len(blocks(WARMUPS)) == 3
    assert names["scheduler"].num_steps == 20


def test_the_page_on_inspections_runs_in_order(tmp_path):
    names = {}
    for block in blocks(INSPECT):
        exec(compile(block, "inspect.md", "exec"), names)
    assert len(blocks(INSPECT)) == 2
    assert names["result"].ok
    assert {line.question for line in names["result"].findings} == set(names["result"].as_dict()["questions"])
    (tmp_path / "setup.py").write_text(blocks(INSPECT)[0], encoding="utf-8")
    assert setup_file.load(f"{tmp_path / 'setup.py'}:setup", most=1).loss_fn.__name__ == "loss_fn"


def sharpness_page_names():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = (torch.randn(16, 4), torch.randn(16, 1))
    return {
        "ew": ew,
        "model": model,
        "optimizer": optimizer,
        "loss_fn": loss_fn,
        "batch": batch,
        "loader": [batch] * 3,
    }


def test_training_example_stays_short():
    """Ten lines that are not blank, besides the imports: the promise of the first screen."""
    lines = [line for line in PYTHON_BLOCKS[0].splitlines() if line and not line.startswith("import")]
    assert len(lines) == 10


def test_every_public_name_is_in_the_reference():
    documented = re.findall(
        r"^::: edgewise\.(?:\w+\.)*(\w+)$", (ROOT / "docs/reference.md").read_text(), flags=re.M
    )
    assert sorted(documented) == sorted(ew.__all__)


def test_the_reference_has_a_line_for_every_status():
    lines = re.findall(r"^\| .* \| `[A-Z_].*$", (ROOT / "docs/reference.md").read_text(), flags=re.M)
    assert {name for line in lines for name in re.findall(r"`([A-Z_]+)`", line)} == set(ew.Status.__members__)


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in sorted(PAGES))],
)
def test_local_links_and_pictures_exist(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", path.read_text(encoding="utf-8")):
        assert exists(path.parent / target.split("#")[0]), target


def exists(path):
    """Whether a file is there, or the script that a page is made from."""
    return path.exists() or (path.suffix == ".md" and path.with_suffix(".py").resolve() in CONCEPTS)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("script", CONCEPTS, ids=lambda path: path.stem)
def test_a_concept_runs_as_a_script(script):
    run = subprocess.run(
        [sys.executable, "-W", "error", script],
        env=os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""


def markdown_of(script):
    """The text of a script's Markdown cells."""
    cells = script.read_text(encoding="utf-8").split("# %%")
    texts = [cell for cell in cells if cell.startswith(" [markdown]")]
    return "\n".join(re.sub(r"^# ?", "", text.partition("\n")[2], flags=re.M) for text in texts)


@pytest.mark.parametrize("script", CONCEPTS, ids=lambda path: path.stem)
def test_a_concept_is_a_page(script):
    text = markdown_of(script)
    assert text.startswith("# ")
    assert "## What to take away" in text
    assert "plt.show()" in script.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", text):
        assert exists(script.parent / target.split("#")[0]), target


@pytest.mark.parametrize(
    "document", [*PAGES, *CONCEPTS], ids=lambda path: str(path.relative_to(ROOT / "docs"))
)
def test_dollars_come_in_pairs(document):
    """Each pair is mathematics on the site: a price in dollars would be, too."""
    text = markdown_of(document) if document in CONCEPTS else document.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.S | re.M)
    for paragraph in prose.split("\n\n"):
        if paragraph.startswith("$$"):
            assert re.fullmatch(r"\$\$[^$]+\$\$", paragraph.strip()), paragraph
        else:
            assert paragraph.count("$") % 2 == 0, paragraph


def test_examples_of_docstrings_are_set_as_code():
    """On the site, prompts are quotations unless they stand in the section `Examples:`, which griffe knows."""
    for name in ew.__all__:
        public = getattr(ew, name)
        members = inspect.getmembers(public) if inspect.isclass(public) else []
        own = [value for _, value in members if inspect.isfunction(value) or isinstance(value, property)]
        for documented in [public, *own]:
            before, prompt, _ = (inspect.getdoc(documented) or "").partition(">>>")
            torchs = getattr(documented, "__module__", "").startswith("torch.")
            assert not prompt or torchs or "Examples:" in before, documented
    for path in (ROOT / "src").rglob("*.py"):
        assert not re.search(r"^ *Example:$", path.read_text(encoding="utf-8"), flags=re.M), path


def spans(document):
    """What stands in backticks in a line, or in a block of commands, without comments."""
    text = (ROOT / document).read_text(encoding="utf-8")
    commands = re.findall(r"^```sh\n(.*?)^```", text, flags=re.S | re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines = [line.partition("#")[0] for block in commands for line in block.splitlines()]
    return [" ".join(span.split()) for span in (*re.findall(r"`([^`]+)`", prose), *lines)]


def paths(document):
    """Words with a slash; and files named alone. What `make` brings into being, in .venv, is not there yet."""
    found = {w for span in spans(document) for w in span.split() if re.fullmatch(r"[\w.-]*\w/[\w./-]*", w)}
    found |= {span for span in spans(document) if re.fullmatch(r"[\w-]+\.(py|md|txt|toml|cff)", span)}
    return {path for path in found if not path.startswith(".venv")}


@pytest.mark.parametrize(("document", "fewest"), [("CONTRIBUTING.md", 30), ("docs/design.md", 4)])
def test_paths_exist(document, fewest):
    named = paths(document)
    assert len(named) >= fewest
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_what_contributing_names_in_a_file_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)`,?\s(?:of|in)\s`([\w/.]+\.py)`", text)
    assert len(named) >= 6
    for name, path in named:
        assert re.search(
            rf"^(def {name}\b|class {name}\b|{name}\b.* = )", (ROOT / path).read_text(), flags=re.M
        ), name
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, name


def test_every_page_is_in_the_menu():
    menu = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M)
    assert {
        str(page.relative_to(ROOT / "docs"))
        for page in [*PAGES, *(path.with_suffix(".md") for path in CONCEPTS)]
    } <= set(menu)
    assert len(menu) == len(set(menu))


def test_every_example_is_on_a_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for example in (ROOT / "examples").glob("*.py"):
        assert f"examples/{example.name}" in pages, example.name


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.M)
    assert phony.split() == re.findall(r"^([a-z]+):.*##", makefile, flags=re.M)
    for command in re.findall(r"`?make ([a-z]+)", README):
        assert command in phony.split()
    for span in spans("CONTRIBUTING.md"):
        if span.startswith("make "):
            assert set(span.split()) <= {"make", *phony.split()}
