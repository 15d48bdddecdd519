"""Rows of a warmup and a monitor in four trackers. Oracle: what each tracker itself reads back.

Weights & Biases has no reader of its own for runs that stay on this machine: their file is taken apart here.
"""

import json

import pytest
import torch
from torch import nn

import edgewise as ew

pytestmark = pytest.mark.processes  # trackers start some of their own
NUM = 12


def loss_fn(model, batch):
    return (model(batch) - batch.prod(1, keepdim=True)).square().mean()


@pytest.fixture(scope="module")
def rows():
    """The numbers of each update; those of the monitor are in every fourth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    warmup, rows = ew.EdgeWarmup(optimizer), []
    monitor = ew.Monitor(model, optimizer, loss_fn, every=4, top_parameters=2)
    for _ in range(NUM):
        batch = torch.randn(16, 3)
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        warmup.observe(lambda batch=batch: loss_fn(model, batch), loss=loss)
        row = monitor.observe(batch)
        rows.append(warmup.metrics() | (row.metrics() if row else {}))
        optimizer.step()
    assert {"edgewise/warmup/lr", "edgewise/warmup/status"} <= set(rows[1])
    assert {"edgewise/sharpness", "edgewise/regime"} <= set(rows[0]) - set(rows[1])
    assert any(name.startswith("edgewise/share/") for name in rows[0])
    return rows


def by_name(rows):
    """Each number's course: steps and values."""
    names = {name for row in rows for name in row}
    return {name: [(step, row[name]) for step, row in enumerate(rows) if name in row] for name in names}


def test_tensorboard_reads_the_rows_back(rows, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    with SummaryWriter(str(tmp_path)) as writer:
        for step, row in enumerate(rows):
            for name, number in row.items():
                writer.add_scalar(name, number, step)
    read = accumulator.EventAccumulator(str(tmp_path)).Reload()
    courses = by_name(rows)
    assert set(read.Tags()["scalars"]) == set(courses)
    for name, course in courses.items():
        found = {event.step: event.value for event in read.Scalars(name)}
        assert found == pytest.approx(dict(course), rel=1e-6)  # kept as float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy
def test_mlflow_reads_the_rows_back(rows, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    with mlflow.start_run() as run:
        for step, row in enumerate(rows):
            mlflow.log_metrics(row, step=step)
    client = mlflow.MlflowClient()
    courses = by_name(rows)
    assert set(client.get_run(run.info.run_id).data.metrics) == set(courses)
    for name, course in courses.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted((metric.step, metric.value) for metric in history) == course


def test_trackio_reads_the_rows_back(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage  # noqa: PLC0415

    run = trackio.init(project="edgewise", auto_log_cpu=False, embed=False)
    for step, row in enumerate(rows):
        trackio.log(row, step=step)
    trackio.finish()
    logs = SQLiteStorage.get_logs("edgewise", run.name)
    found = {entry["step"]: {name: entry[name] for name in entry if "/" in name} for entry in logs}
    assert found == dict(enumerate(rows))


def test_a_wandb_file_holds_the_rows(rows, tmp_path):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415

    run = wandb.init(project="edgewise", mode="offline", dir=str(tmp_path))
    for step, row in enumerate(rows):
        run.log(row, step=step)
    run.finish()
    wandb.teardown()  # its process writes the file, and ends here
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = {}
    for data in records(path.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            items = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            found[items["_step"]] = {name: items[name] for name in items if "/" in name}
    assert found == dict(enumerate(rows))


def records(data, block=32768):
    """The records of a LevelDB log after W&B's header of 7 bytes: each in one piece or several, none across a block."""
    position, whole = 7, b""
    while position + 7 <= len(data):
        if block - position % block < 7:  # no header fits: the block is filled up
            position += block - position % block
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        whole += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # one piece, or the last
            yield whole
            whole = b""
