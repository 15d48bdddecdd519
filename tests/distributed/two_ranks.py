"""Two processes, over gloo on the CPU, for what the tests of a room share.

EDGEWISE_TEST_PATIENCE is how many seconds they may take for what one room asks of them (240 where it is not set);
after a quarter of it, a collective call that waits for the other rank fails. Both are far beyond what a quiet machine
needs; set it higher on one that is busier still.
"""

import datetime
import multiprocessing
import os
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

NUM = 2
_PATIENCE = float(os.environ.get("EDGEWISE_TEST_PATIENCE", "240"))


class TwoRanks:
    """Started anew for each room: one that has left a group may hang as it joins the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = 0
        self._processes: list = []
        self._pipes: list = []

    def run(self, body) -> list:
        """Run `body(rank)` in each process and return what they return; fail if one raises or hangs."""
        self._runs += 1
        results = [self._folder / f"{self._runs} {rank}" for rank in range(NUM)]
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        try:
            for rank, result in enumerate(results):
                self._start(body, rank, store.port, result)
            failures = self._failures()
        finally:
            self._stop()
        assert not failures, "\n".join(failures)
        return [torch.load(result, weights_only=False) for result in results]

    def _start(self, body, rank: int, port: int, result: Path) -> None:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(body, rank, port, result, theirs), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)
        self._pipes.append(pipe)

    def _failures(self) -> list[str]:
        """What the ranks raised; a hanging one is told by number."""
        deadline = time.monotonic() + _PATIENCE
        ended = [pipe.poll(max(0.0, deadline - time.monotonic())) for pipe in self._pipes]
        hanging = [rank for rank, end in enumerate(ended) if not end]
        failures = [_told(pipe) for pipe, end in zip(self._pipes, ended, strict=True) if end]
        return [f"ranks {hanging} hang"] * bool(hanging) + [failure for failure in failures if failure]

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []


def _told(pipe) -> str:
    try:
        return pipe.recv()
    except EOFError:
        return "a rank is gone"


def _serve(body, rank: int, port: int, result: Path, pipe) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    patience = datetime.timedelta(seconds=_PATIENCE / 4)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=patience)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=NUM, timeout=patience)
    try:
        torch.save(body(rank), result)
    except Exception:
        pipe.send(traceback.format_exc())
        return
    dist.barrier()
    pipe.send("")
    time.sleep(_PATIENCE)  # until it is stopped: the other may still be in the barrier
