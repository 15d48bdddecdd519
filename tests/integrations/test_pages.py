"""The recipes on the pages of docs/how-to/ run as they stand. Oracle: what their schedules come to at the end."""

import re
import types
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"
NUM_BATCHES = 8


def blocks(page):
    text = (PAGES / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)


def run(block, names):
    exec(compile(block, "page.md", "exec"), names)
    return names


@pytest.fixture
def names():
    """What the user has already: a classifier and its samples."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    samples = torch.utils.data.TensorDataset(torch.randn(32, 3, 2, 2), torch.arange(32) % 3)
    return {
        "torch": torch,
        "cross_entropy": cross_entropy,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": torch.utils.data.DataLoader(samples, batch_size=4),
        "loss_fn": lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        "num_epochs": 1,
        "num_updates": 0,
        "updates_per_epoch": NUM_BATCHES,
    }


def test_accelerate(names):
    accelerate = pytest.importorskip("accelerate")
    (block,) = blocks("accelerate.md")
    names |= {"Accelerator": lambda **options: accelerate.Accelerator(cpu=True, **options), "num_updates": 2}
    after = run(block, names)
    assert after["scheduler"].warmup.report().updates == NUM_BATCHES / 4
    assert after["scheduler"].get_last_lr() == [0.0]


def test_lightning(tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning.pytorch")
    from integrations import lightning_runs as runs  # noqa: PLC0415 - where Lightning is

    monkeypatch.chdir(tmp_path)
    trainer = lambda **options: lightning.Trainer(**runs.QUIET | {"max_epochs": 1} | options)
    names = {"L": types.SimpleNamespace(Trainer=trainer), "module": runs.Net(), "loader": runs.loader()}
    with runs.without_advice():
        for block in blocks("lightning.md")[:2]:
            run(block, names)
    warmup, monitor = names["trainer"].callbacks[:2]
    assert warmup.warmup.report().updates == warmup.schedule.num_steps == runs.NUM_BATCHES
    assert monitor.row is not None
    assert [callback._decay for callback in names["callbacks"]] == ["cosine", None, None]


def test_the_scheduler_on_lightning_s_page_follows(names):
    pytest.importorskip("lightning.pytorch")
    from edgewise.integrations.lightning import EdgeWarmupCallback  # noqa: PLC0415 - where Lightning is
    from integrations import lightning_runs as runs  # noqa: PLC0415

    *_, block = blocks("lightning.md")
    configure = run(block, names)["configure_optimizers"]
    callback = EdgeWarmupCallback()
    module = type("Scheduled", (runs.Net,), {"configure_optimizers": configure})()
    runs.fit(module, callback)
    assert callback.schedule.follower.T_max == 10_000


def test_timm(names):
    create_optimizer = pytest.importorskip("timm.optim").create_optimizer_v2
    block, *_ = blocks("timm.md")
    after = run(block, names | {"create_optimizer_v2": create_optimizer})
    assert after["optimizer"].param_groups[0]["lr"] == 0.0
    assert isinstance(after["optimizer"], torch.optim.AdamW)


def test_distributed_data_parallel(names, tmp_path):
    """In a group of one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        names["DistributedDataParallel"] = torch.nn.parallel.DistributedDataParallel
        after = run(blocks("distributed.md")[0], names)
    finally:
        torch.distributed.destroy_process_group()
    assert after["scheduler"].get_last_lr() == [0.0]


def test_a_recorded_warmup_is_replayed(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, replay = blocks("distributed.md")
    recorded = run(blocks("distributed.md")[0].replace("DistributedDataParallel(model)", "model"), names)
    rates = recorded["warmup"].export()
    model = torch.nn.Linear(2, 1)
    again = run(replay, recorded | {"optimizer": torch.optim.SGD(model.parameters(), lr=1.0)})
    found = []
    for _ in rates:
        found += again["scheduler"].get_last_lr()
        again["optimizer"].step()
        again["scheduler"].step()
    assert found == rates
    assert len(rates) > 1


def test_trackers(names):
    logged = {}
    names["log"] = lambda numbers, step: logged.update({step: numbers})
    (block,) = blocks("trackers.md")
    run(block, names)
    assert list(logged) == list(range(NUM_BATCHES))
    assert {"loss", "edgewise/warmup/lr", "edgewise/sharpness"} <= set(logged[0])
    assert "edgewise/sharpness" not in logged[1]
