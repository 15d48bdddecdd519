"""What the documents promise: their code runs, their lists are complete.

Oracle: the documents themselves, executed. Cannot see: whether a sentence is true, or a measured figure up to date.
"""

import inspect
import math
import os
import re
import subprocess
import sys
import tomllib
import urllib.parse
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import edgewise as ew
from edgewise import cli
from edgewise.advice import setup_file

ROOT = Path(__file__).parent.parent
CONCEPTS = sorted((ROOT / "docs" / "concepts").glob("*.py"))  # scripts whose executed form is a page
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "concepts")
REFERENCE = "".join(
    page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs/reference").glob("*.md"))
)
FIRST_RUN = (ROOT / "examples" / "first_run.py").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHARPNESS = (ROOT / "docs" / "sharpness.md").read_text(encoding="utf-8")
WARMUPS = (ROOT / "docs" / "warmups.md").read_text(encoding="utf-8")
INSPECT = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
WITH_A_FRAMEWORK = {
    "accelerate",
    "distributed",
    "lightning",
    "timm",
    "trackers",
    "transformers",
}  # tests/integrations


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


def page_names():
    """What a reader has: a classifier that learns which of four inputs is the largest, and 24 batches."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    batches = [(inputs, inputs[:, :4].argmax(1)) for inputs in torch.randn(24, 32, 16)]
    return {
        "torch": torch,
        "model": model,
        "loss_fn": lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
        "loader": batches,
        "batch": batches[0],
    }


def run_page(page, names=None, swap=("", "")):
    """Run the blocks of a page in order, with one text in the place of another, and return all names."""
    names = page_names() if names is None else names
    for number, block in enumerate(blocks((ROOT / "docs" / page).read_text(encoding="utf-8"))):
        exec(compile(block.replace(*swap), f"{page}, block {number}", "exec"), names)
    return names


def held_by_mixed_precision(names):
    assert names["warmup"].fallback is None
    assert names["warmup"].report().updates == 24
    overflowing = run_page(
        "how-to/mixed-precision.md", swap=('GradScaler("cpu")', 'GradScaler("cpu", init_scale=2.0**28)')
    )
    made = overflowing["warmup"].report().updates
    assert (
        made == 24 - math.log2(2.0**28 / overflowing["scaler"].get_scale()) < 24
    )  # a skipped step halves it
    assert overflowing["warmup"].fallback is None
    clipping = "    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\n"
    with pytest.warns(UserWarning, match="unscale them first"):
        run_page("how-to/mixed-precision.md", swap=("    scaler.unscale_(optimizer)\n" + clipping, ""))
    for rate, falls_back in (("3e-2", False), ("1e-4", True)):
        names = page_names()
        names["model"].bfloat16()
        names["loader"] = [(inputs.bfloat16(), targets) for inputs, targets in names["loader"]]
        block = blocks((ROOT / "docs/how-to/mixed-precision.md").read_text(encoding="utf-8"))[0]
        with pytest.warns(UserWarning, match="not precise enough") if falls_back else nullcontext():
            exec(block.replace("3e-2", rate), names)
        assert (names["warmup"].fallback is not None) == falls_back


def held_by_accumulation(names):
    """A plain loop whose batches are the micro-batches of an update put together, in float64.

    There are 25, so that the last update is of one, whose loss is divided by four all the same.
    """
    page, _ = blocks((ROOT / "docs/how-to/accumulation.md").read_text(encoding="utf-8"))
    found = page_names()
    found["model"].double()
    micro_batches = [(inputs.double(), targets) for inputs, targets in [*found["loader"], found["batch"]]]
    found["loader"] = micro_batches
    exec(page, found)

    names = page_names()
    model, loss_fn = names["model"].double(), names["loss_fn"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    warmup = ew.EdgeWarmup(optimizer, num_steps=7)
    scheduler = warmup.then_until(7, "cosine")
    for start in range(0, 25, 4):
        together = micro_batches[start : start + 4]
        whole = [torch.cat(parts) for parts in zip(*together, strict=True)]
        share = len(together) / 4
        closure = lambda whole=whole, share=share: share * loss_fn(model, whole)
        optimizer.zero_grad()
        closure().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warmup.observe(closure, loss=closure())
        optimizer.step()
        scheduler.step()
    assert found["warmup"].report().updates == warmup.report().updates == 7
    assert found["warmup"].export() == pytest.approx(warmup.export(), rel=1e-9)
    for mine, plain in zip(found["model"].parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-12)


def held_by_resume(names):
    """The same updates without a stop, bit for bit; the warmup is under way when it is saved."""
    assert torch.load("checkpoint.pt")[2]["handed_over"] is False
    loader, page = names["loader"], (ROOT / "docs/how-to/resume.md").read_text(encoding="utf-8")
    for num_blocks, num_steps, rest in ((2, 24, loader[10:]), (3, 40, loader[10:] + loader[:16])):
        resumed = page_names()
        for block in (blocks(page)[0], blocks(page)[num_blocks - 1]):
            exec(block, resumed)
        model, _, scheduler = whole = names["setup"](24)
        names["train"](*whole, loader[:10])
        scheduler.num_steps = num_steps
        names["train"](*whole, rest)
        assert scheduler.get_last_lr() == resumed["scheduler"].get_last_lr()
        assert scheduler.last_epoch == resumed["scheduler"].last_epoch == num_steps
        for mine, other in zip(model.parameters(), resumed["model"].parameters(), strict=True):
            assert torch.equal(mine, other)


def held_by_own_optimizer(names):
    """P is what a step divides by, and its sharpness that of the dense matrix."""
    names = page_names()
    first, teaching, _ = blocks((ROOT / "docs/how-to/own-optimizer.md").read_text(encoding="utf-8"))
    for block in (first, teaching):
        exec(compile(block, "own-optimizer.md", "exec"), names)
    model, batch, optimizer = names["model"], names["batch"], names["optimizer"]
    optimizer.zero_grad()
    names["loss_fn"](model, batch).backward()
    before = [p.detach().clone() for p in model.parameters()]
    divisors = [
        names["divisor"](optimizer, optimizer.param_groups[0], optimizer.state[p], p, p.grad)
        for p in model.parameters()
    ]
    with ew.hessian(model, names["loss_fn"], [batch], dtype=torch.float64) as operator:
        dense = torch.stack([operator.matvec(row) for row in torch.eye(operator.size, dtype=torch.float64)])
    root = torch.cat([d.flatten() for d in divisors]).double().rsqrt()
    top = float(torch.linalg.eigvalsh(root[:, None] * dense * root)[-1])
    measured = ew.preconditioned_sharpness(model, names["loss_fn"], [batch], optimizer, dtype=torch.float64)
    assert measured.value == pytest.approx(top, rel=1e-3)
    lr = optimizer.param_groups[0]["lr"]
    gradients = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    for p, old, gradient, divisor in zip(model.parameters(), before, gradients, divisors, strict=True):
        torch.testing.assert_close(p.detach(), old - lr * gradient / divisor)
    assert ew.stability_limit(optimizer).value == pytest.approx(2)
    full = run_page("how-to/own-optimizer.md")
    assert [warmup.fallback for warmup in full["warmups"]] == [None, None]
    assert len({warmup.report().lr_start / warmup.report().lr_target for warmup in full["warmups"]}) == 2


def held_by_spikes(names):
    """What the page says of its rows."""
    losses = {row.step: loss for row, loss in names["rows"]}
    fractions = {row.step: row.fraction for row, _ in names["rows"]}
    lowest = min((losses[step], step) for step in range(75, 105, 5))[1]
    peak = max((losses[step], step) for step in range(lowest, 120, 5))[1]
    assert losses[peak] > 30 * losses[lowest]
    assert max(fractions[step] for step in range(75, lowest + 5, 5)) > 0.95  # before it
    assert fractions[115] < 0.9
    assert list(names["rows"][17][0].top_parameters) == ["2.weight"]
    halved = {row.step: (loss, row.fraction) for row, loss in names["halved"]}
    assert max(loss for step, (loss, _) in halved.items() if step >= 85) == halved[85][0]
    assert all(fraction < 0.7 for step, (_, fraction) in halved.items() if step >= 85)


def held_by_choosing_a_rate(names):
    assert names["warmup"].status is ew.Status.HELD_BELOW_TARGET
    assert names["lr"] == names["warmup"].lr_held < 0.1
    assert float(names["later"].base_lrs[0]) == names["lr"]
    linear = ew.LinearWarmup(torch.optim.SGD(names["model"].parameters(), lr=1.0), warmup_steps=1000)
    given_up = sum(1 - linear.factor_at(update) for update in range(1000))
    assert 2 * given_up == pytest.approx(1000, rel=2e-3)  # the rule, of a linear warmup itself
    assert 1 < names["later"].warmup_steps < 24


def held_by_export(names):
    """All ways of replaying give the rates that were trained with."""
    warmup, optimizer, scheduler = names["warmup"], names["optimizer"], names["scheduler"]
    rates = [0.3 * warmup.factor_at(update) for update in range(24)]
    replayed = []
    for _ in range(24):
        replayed += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    length = len(names["factors"])
    assert 1 < length <= 24
    assert replayed == rates
    assert names["rate"](np.arange(length)) == pytest.approx(rates[:length])
    assert float(names["rate"](999)) < 1e-4 * rates[-1]
    assert float(names["rate"](1000)) == 0.0
    longer = names["stretched"](names["factors"], 2 * length - 1)
    assert longer[::2] == pytest.approx(names["factors"])


HELD = {
    "mixed-precision": held_by_mixed_precision,
    "accumulation": held_by_accumulation,
    "resume": held_by_resume,
    "own-optimizer": held_by_own_optimizer,
    "spikes": held_by_spikes,
    "choosing-a-rate": held_by_choosing_a_rate,
    "export": held_by_export,
}
ALPHABET = "abcdefghijklmnopqrstuvwxyzζμ"


@pytest.mark.parametrize("page", HELD)
def test_a_how_to_runs_as_it_stands(page, tmp_path, monkeypatch):
    """In order, in one namespace that starts from `page_names`; then what the page promises is held against it."""
    monkeypatch.chdir(tmp_path)
    HELD[page](run_page(f"how-to/{page}.md"))


def test_the_questions_run_as_they_stand():
    names = run_page("faq.md")
    assert names["scheduler"].num_steps == len(names["loader"])
    assert names["decay"].T_max + 8 == len(names["loader"])


@pytest.mark.parametrize("page", sorted(page.stem for page in (ROOT / "docs/how-to").glob("*.md")))
def test_a_how_to_comes_up_first_in_a_search_and_begins_with_what_to_type(page):
    text = (ROOT / f"docs/how-to/{page}.md").read_text(encoding="utf-8")
    assert text.startswith("---\nsearch:\n  boost: 2\n---\n\n# ")
    assert text.index("```") < 1500


def test_commands_and_options_exist(capsys, monkeypatch):
    """Those of `edgewise` in the blocks of commands of all pages, as `--help` has them."""
    found = 0
    for page in PAGES:
        for line in spans(str(page.relative_to(ROOT))):
            if "edgewise " not in line or line.startswith("pip"):
                continue
            command = re.search(r"\bedgewise (demo|inspect|figure|sweep|status|report|prepare)\b(.*)", line)
            if command is None:
                continue
            monkeypatch.setattr(sys, "argv", ["edgewise", command[1], "--help"])
            with pytest.raises(SystemExit):
                cli.main()
            known = capsys.readouterr().out
            for option in re.findall(r"--[a-z-]+", command[2]):
                assert option in known, line
                found += 1
    assert found >= 10


def test_the_words_are_in_order():
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    words = [
        re.sub(r"[^a-zζμ]", "", word.lower()) for word in re.findall(r"^\| \*\*(.+?)\*\*", text, flags=re.M)
    ]
    assert len(words) > 30
    assert words == sorted(words, key=lambda word: [ALPHABET.index(letter) for letter in word])


def test_what_to_cite_is_what_the_citation_file_says():
    page = (ROOT / "docs/citation.md").read_text(encoding="utf-8")
    cff = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    paper = cff[cff.index("references:") :]
    title, version = (re.search(rf"^{name}: (.+)$", cff, flags=re.M)[1] for name in ("title", "version"))
    assert f"title   = {{{title}}}" in page
    assert f"version = {{{version}}}" in page
    assert version == ew.__version__
    assert "{" + re.search(r'title: "(.+)"', paper)[1] + "}" in page
    assert re.search(r"url: (\S+)", paper)[1] in page
    assert re.search(r"arXiv:(\S+)", paper)[1] in page
    names = zip(
        re.findall(r"family-names: (.+)", paper), re.findall(r"given-names: (.+)", paper), strict=True
    )
    assert " and ".join(f"{family}, {given}" for family, given in names) in page


def test_every_picture_is_in_the_gallery():
    gallery = (ROOT / "docs/gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\(images/(\S+\.png)\)", gallery)
    assert sorted(shown) == sorted(path.name for path in (ROOT / "docs/images").glob("*.png"))
    for path in re.findall(r"\b(?:docs/studies|benchmarks|examples)/\w+\.py", gallery):
        assert (ROOT / path).exists(), path


def test_every_how_to_with_code_is_run():
    with_code = {page.stem for page in (ROOT / "docs/how-to").glob("*.md") if blocks(page.read_text("utf-8"))}
    assert with_code == {*HELD, *WITH_A_FRAMEWORK, "own-recipe"}  # the last in tests/lab


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


def test_names_of_the_library_on_the_pages_exist():
    named = {name for page in PAGES for name in re.findall(r"\bew\.(\w+)", page.read_text(encoding="utf-8"))}
    assert len(named) > 10
    assert sorted(named - set(ew.__all__) - {"__version__"}) == []


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
        # Beside the repository's files, where GitHub shows them, are what its workflows came to.
        here = re.sub(r"^\.\./\.\./actions/(workflows/\w+\.yml)(/badge\.svg)?$", r".github/\1", target)
        assert exists(path.parent / here.split("#")[0]), target


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
    menu = re.findall(r"[:-] ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M)
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
