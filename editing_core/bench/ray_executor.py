"""Runs on a Ray cluster: one task per GPU, or per processor where the cluster has no GPU.

Every host sees the runs' folder under the same path, on a file system whose locks hold between hosts (such as NFS 4):
by its lock a run is known to have a living worker. Every host has the same EditScope, Python and Ray, and an
environment of its own, EDITSCOPE_HOME with the key statistics included.
"""

import contextlib
import logging
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from editing_core.bench.executors import Fate, Worker
from editing_core.errors import BadSetting
from editing_core.runs.folder import LOG, RunFolder

PATIENCE = 10  # seconds for a cluster to answer


class RayCluster:
    """A cluster, from birth to `close`. address: of one there is; "" starts one on this machine, which then ends.

    BadSetting where no cluster answers. Workers end with the process that started them; their runs are interrupted.
    """

    def __init__(self, address: str = "") -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {} if address else {"include_dashboard": False}
        try:
            if address not in ("", "auto"):
                _reach(address)
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            told = str(error).partition("\n")[0][:120]
            raise BadSetting(
                f"Ray cannot be used at {address or 'this machine'} ({told}); start a cluster there with "
                "'ray start --head', or choose another executor."
            ) from error
        self.unit = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
        needs = {f"num_{self.unit.lower()}s": 1}
        # One process per run, which gives its memory back. A lost run is started again by the dispatcher, not by Ray.
        self._task = ray.remote(max_calls=1, max_retries=0, **needs)(_work)

    @property
    def places(self) -> int:
        """GPUs, or processors, of the hosts there are now."""
        return int(ray.cluster_resources().get(self.unit, 0))

    def start(self, folder: RunFolder, place: int) -> Worker:  # noqa: ARG002 - Ray chooses the host and the GPU
        """Ray starts the task as soon as a host has room for it."""
        path = folder.path.resolve()
        return RayWorker(self._task.remote(path, Path.cwd()), path / LOG)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        ray.shutdown()


@dataclass(frozen=True)
class RayWorker:
    """A task. log: the run's, for what kept the task from working."""

    task: Any
    log: Path

    def poll(self) -> Fate | None:
        """Lost where its host or process is gone."""
        if not ray.wait([self.task], timeout=0)[0]:
            return None
        try:
            ray.get(self.task)
        except RayTaskError as error:
            with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as log:
                log.write(f"{error}\n")
        except RayError:
            return Fate.LOST
        return Fate.ENDED


def _reach(address: str) -> None:
    """ValueError or OSError where nobody listens at [SCHEME://]HOST:PORT; Ray itself would wait for many minutes."""
    host, colon, port = address.rpartition("/")[2].rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError("the address is HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def _work(path: Path, here: Path) -> None:
    """Do a run inside the task's process, with its output in the run's log. here: where relative paths begin."""
    from editing_core.cli_runs import work  # what a local process does, too

    sys.stdout.flush()
    sys.stderr.flush()
    with (path / LOG).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    with contextlib.suppress(OSError):  # this host does not have that folder
        os.chdir(here)
    work(RunFolder(path))
