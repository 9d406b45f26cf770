"""A Ray cluster: joined or started here, asked what it has, and given tasks.

A task that is lost with its worker or its node is done again elsewhere; files are read and written
by whoever asked, so that nothing on disk depends on who computed it.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pal.errors import ConfigError, PalError, PalWarning
from pal.memory import kept

CONNECT_SECONDS, JOIN_SECONDS = 5.0, 25.0
JOIN = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False); ray.shutdown()"
REMEDY = "give the address of a running cluster, as ray start --head prints it"
RETRIES = 3
"""of a task whose worker or node is lost; what kills its worker four times is given up"""
LOST = (
    "WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError", "OutOfMemoryError",
    "ObjectLostError",
)  # fmt: skip
"""errors of Ray that say that a worker or node is gone, not what a task raised"""


class Share(NamedTuple):
    """What each of the tasks that run at once has of a cluster."""

    at_once: int
    cpus: int
    """also the threads that it computes with"""
    gpus: float
    """0 where none is used; several tasks may have a GPU together"""

    @property
    def device(self) -> str:
        """The torch device of a task."""
        return "cuda:0" if self.gpus else "cpu"


class Lost(NamedTuple):
    """In place of the result of a task whose workers died, one after the other."""

    reason: str


class Node(NamedTuple):
    """What one machine of a cluster offers."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Setting:
    """How a task computes."""

    threads: int
    folder: Path | None
    """to work in; None where no file is read"""


class Cluster:
    """The Ray cluster that this process has joined."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray

    @property
    def nodes(self) -> list[Node]:
        """The machines that take tasks now."""
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        every = [Node(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in alive]
        return [node for node in every if node.cpus]

    def share(self, workers: int | None, for_gpus: bool, for_nodes: bool) -> Share:
        """Divide the cluster among ``workers`` tasks at once; without a number among one for each
        GPU, where ``for_gpus`` finds some, else one for each node or each CPU."""
        nodes = self.nodes
        gpus = sum(node.gpus for node in nodes) if for_gpus else 0
        if gpus:
            nodes = [node for node in nodes if node.gpus]
        cpus = sum(node.cpus for node in nodes)
        at_once = workers or gpus or (len(nodes) if for_nodes else cpus) or 1
        # as many as the smallest node has: a task that fits nowhere would wait for ever
        smallest = min((node.cpus for node in nodes), default=1)
        of_each = max(1, min(smallest, cpus // at_once))
        return Share(at_once, of_each, 1.0 / math.ceil(at_once / gpus) if gpus else 0.0)

    def put(self, value: object) -> Any:
        """Keep a value for tasks, which may be given the reference as an argument: each node
        fetches it once, and arrays in it are not copied there."""
        return self.ray.put(value)

    def run(
        self,
        share: Share,
        work: Callable[..., Any],
        calls: Iterable[tuple[Any, ...]],
        folder: Path | None = None,
    ) -> Generator[tuple[int, Any], None, None]:
        """Call ``work`` with each of the tuples of arguments, some at once.

        Yields the number of a call and its result, or ``Lost``, as they come; ``calls`` is read as
        tasks find room. ``folder``: where they work. What a task raises is raised here, and its
        warnings are given here. Tasks that still run when the iterator is closed are ended.
        """
        ray = self.ray
        task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=RETRIES)(_perform)
        setting, waiting = Setting(share.cpus, folder), enumerate(calls)
        running: dict[Any, int] = {}
        try:
            while True:
                while len(running) < share.at_once and (call := next(waiting, None)) is not None:
                    number, arguments = call
                    running[task.remote(setting, work, *arguments)] = number
                if not running:
                    return
                (done, *_), _ = ray.wait(list(running))
                number = running.pop(done)
                yield number, self._result(done)
        finally:
            for reference in running:
                with suppress(Exception):  # the cluster may be what is gone
                    ray.cancel(reference, force=True)

    def _result(self, reference: Any) -> Any:
        errors = self.ray.exceptions
        try:
            result, told = self.ray.get(reference)
        except errors.RayTaskError as error:
            raise_cause(error)
        except tuple(getattr(errors, name) for name in LOST) as error:
            return Lost(type(error).__name__)
        for message in told:
            warnings.warn(message, PalWarning, stacklevel=2)
        return result


@contextmanager
def joined(address: str | None, cpus: int) -> Iterator[Cluster]:
    """Join the Ray cluster at an address, or that of ``RAY_ADDRESS``; without either, start one of
    so many CPUs on this machine for the length of the block.

    A cluster that this process is in already is used as it is. Raises ConfigError where Ray is not
    installed or, within 30 s, where no cluster answers.
    """
    ray = library()
    began = not ray.is_initialized()
    if began:
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            ray.init(address, num_cpus=cpus, include_dashboard=False, log_to_driver=False)
        else:
            require_cluster(address)
            ray.init(address, log_to_driver=False)
    try:
        yield Cluster(ray)
    finally:
        if began:
            ray.shutdown()


def library() -> Any:
    """Return Ray; raises ConfigError where it is not installed."""
    require_library()
    import ray

    return ray


def require_library() -> None:
    """Raise ConfigError where Ray is not installed; does not import it."""
    if sys.modules.get("ray") is None and find_spec("ray") is None:
        raise ConfigError(
            "--executor ray needs Ray; install the extra: pip install 'pal-heads[ray]'"
        )


def require_ahead(executor: str, address: str | None) -> None:
    """Raise ConfigError where what an executor needs is not there, before any work is planned.

    Of ``slurm`` that is a job; of ``ray`` the library, and something that answers at the address: a
    wrong one costs no reading of a dataset. Whether it is a cluster, ``joined`` finds out.
    """
    if executor == "slurm" and "SLURM_JOB_ID" not in os.environ:
        raise ConfigError(
            "--executor slurm runs inside a job, but SLURM_JOB_ID is not set; submit it with "
            "sbatch --array=0-3, or leave --executor out"
        )
    if executor != "ray":
        return
    ray = sys.modules.get("ray")  # to import it takes seconds
    if ray is None:
        require_library()
    address = address or os.environ.get("RAY_ADDRESS")
    if address and not (ray is not None and ray.is_initialized()):
        require_answer(address)


def require_answer(address: str) -> None:
    """Raise ConfigError unless something listens at an address that names host and port."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"nothing answers at --ray-address {address} ({error}); {REMEDY}"
            ) from error


def require_cluster(address: str) -> None:
    """Raise ConfigError within 30 s unless a cluster answers at an address.

    ``ray.init`` itself waits for minutes, and then ends the process: another process tries first.
    """
    require_answer(address)
    try:
        tried = subprocess.run(
            [sys.executable, "-c", JOIN, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=JOIN_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"what answers at --ray-address {address} is no Ray cluster, or too slow: it could not "
            f"be joined within {JOIN_SECONDS:.0f} s; {REMEDY}"
        ) from error
    if tried.returncode:
        reason = (tried.stderr.strip().splitlines() or ["no reason is given"])[-1][:300]
        raise ConfigError(f"cannot join the Ray cluster at {address} ({reason}); {REMEDY}")


def raise_cause(error: Any) -> NoReturn:
    """Raise what a task raised, without the cluster's own frames where it is a sentence."""
    if isinstance(error.cause, PalError | OSError):
        raise error.cause from None
    raise error


def _perform(setting: Setting, work: Callable[..., Any], *arguments: Any) -> tuple[Any, list[str]]:
    """Do a call in a process of the cluster; returns its result and what it warned of."""
    import torch

    torch.set_num_threads(setting.threads)
    with kept(), ExitStack() as stack:
        told = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always", PalWarning)
        if setting.folder is not None:
            try:
                stack.enter_context(chdir(setting.folder))
            except OSError as error:
                raise ConfigError(
                    f"node {socket.gethostname()} of the Ray cluster cannot open {setting.folder} "
                    f"({error.strerror}); work in a folder that all nodes share"
                ) from error
        result = work(*arguments)
    messages = [str(one.message) for one in told if issubclass(one.category, PalWarning)]
    return result, list(dict.fromkeys(messages))
