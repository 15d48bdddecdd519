"""What the documents promise: their code runs, their lists are complete.

Oracle: the documents themselves, executed. Cannot see: whether a sentence is true, or a measured figure up to date.
"""

import re
import tomllib
import urllib.parse
from pathlib import Path

import pytest
import torch

import edgewise as ew
from edgewise.advice import setup_file

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
REFERENCE = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs/reference").glob("*.md")))
FIRST_RUN = (ROOT / "examples" / "first_run.py").read_text(encoding="utf-8")
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


def test_readme_examples_run_in_order(capsys):
    names = {}
    first, trainers, measuring = PYTHON_BLOCKS
    exec(compile(first, "README.md", "exec"), names)
    assert names["warmup"].fallback is None
    assert names["warmup"].status is ew.Status.HELD_BELOW_TARGET
    assert names["warmup"].lr_held < 0.03  # where 0.3 was asked for
    said = capsys.readouterr().out
    assert float(re.search(r"final loss: (\S+)", said)[1]) < 0.01
    assert {line.strip().split(",")[0] for line in said.splitlines()[1:]} <= {
        line.strip().split(",")[0] for line in README.splitlines()
    }
    compile(trainers, "README.md", "exec")  # run, line by line, on the pages that they come from
    exec(compile(measuring, "README.md", "exec"), names)
    assert capsys.readouterr().out.count("(CONVERGED") == 3
    assert names["monitor"].observe(names["batch"]) is None  # the first one has been taken


def test_the_first_run_of_the_readme_is_the_example_of_that_name():
    code = FIRST_RUN.split('"""\n')[-1].replace("  # edgewise", "").strip()
    assert PYTHON_BLOCKS[0].strip() == code
    assert len([line for line in code.splitlines() if line]) <= 25


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


def test_the_readme_stays_short():
    """Six hundred words before what is for those who read on; code is not counted."""
    before = re.sub(r"```.*?```", "", README.split("## More")[0], flags=re.S)
    assert len(before.split()) <= 600


def test_the_badges_are_true():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    badges = dict(re.findall(r"badge/(\w+)-(.+?)-blue\)", urllib.parse.unquote(README)))
    torch_versions = next(each for each in project["dependencies"] if each.startswith("torch"))
    assert badges == {
        "python": project["requires-python"].replace(">=", "≥ "),
        "torch": torch_versions.replace("torch>=", "≥ "),
        "types": "mypy strict",
        "licence": project["license"],
    }


def test_every_public_name_is_in_the_reference():
    documented = re.findall(r"^::: edgewise\.(?!lab)(?:\w+\.)*(\w+)$", REFERENCE, flags=re.M)
    assert sorted(documented) == sorted(ew.__all__)


def test_the_reference_has_a_line_for_every_status():
    lines = re.findall(r"^\| .* \| `[A-Z_].*$", REFERENCE, flags=re.M)
    assert {name for line in lines for name in re.findall(r"`([A-Z_]+)`", line)} == set(ew.Status.__members__)


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", *(str(p.relative_to(ROOT)) for p in sorted(PAGES))],
)
def test_local_links_and_pictures_exist(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target.split("#")[0]).exists(), target


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
    menu = re.findall(r"[:-] ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M)
    assert {str(page.relative_to(ROOT / "docs")) for page in PAGES} <= set(menu)
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
