"""The example for SLURM on a real SLURM of one node, from Debian's packages slurmctld, slurmd,
slurm-client and munge; as root, which starts their services for the time of the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "slurm.sbatch"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmctldPort={control}
SlurmdPort={daemon}
AuthInfo=socket={place}/munge.socket
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmdParameters=config_overrides
MpiDefault=none
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=2
MinJobAge=3600
ReturnToService=2
NodeName={host} CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
SMALL = (
    "data.demo.limit=200", "data.demo.groups=1", "data.demo.users=6", "data.demo.unseen_users=4",
    "data.demo.validation_users=2", "data.demo.pairs_per_user=10", "train.epochs=2",
    "data.demo.validation_pairs_per_user=5", "data.demo.test_pairs_per_user=5",
    "embed.rows_per_shard=5",
)  # fmt: skip


def free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


def wait_for(what: str, is_so: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, f"no {what} within {seconds:.0f} s\n{logs()}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of this machine; its folder, where the services' logs are."""
    if os.geteuid() or any(shutil.which(name, path=PATH) is None for name in NEEDED):
        pytest.skip("needs root, and Debian's packages slurmctld, slurmd, slurm-client and munge")
    place = Path(f"/tmp/pal-slurm-{os.getpid()}")  # a socket's name has at most 107 letters
    place.mkdir(mode=0o755)
    host, (control, daemon) = socket.gethostname().split(".")[0], free_ports(2)
    text = CONFIGURATION.format(host=host, place=place, control=control, daemon=daemon)
    (place / "slurm.conf").write_text(text)
    (place / "state").mkdir()
    (place / "spool").mkdir()
    (place / "munge.key").write_bytes(os.urandom(128))
    (place / "munge.key").chmod(0o600)
    names = ("key", "socket", "pid", "seed", "log")
    options = [f"--{name}-file={place}/munge.{name}" for name in names if name != "socket"]
    commands = {
        "munged": ["--foreground", "--force", f"--socket={place}/munge.socket", *options],
        "slurmctld": ["-D", "-f", f"{place}/slurm.conf"],
        "slurmd": ["-D", "-f", f"{place}/slurm.conf", "-N", host],
    }
    running = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(place / "slurm.conf"))
        patch.setenv("PATH", PATH)
        try:
            for name, arguments in commands.items():
                with open(place / f"{name}.out", "wb") as log:
                    running.append(subprocess.Popen([name, *arguments], stdout=log, stderr=log))
                if name == "munged":
                    wait_for("munge", (place / "munge.socket").exists)
            wait_for("idle node", lambda: "idle" in answer("sinfo", "-h", "-o", "%T"))
            yield place
        finally:
            for process in reversed(running):
                process.terminate()
                process.wait(30)
            shutil.rmtree(place, ignore_errors=True)


def answer(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def submit(*options: str, stage: str) -> str:
    done = subprocess.run(
        ["sbatch", "--parsable", *options, str(EXAMPLE), stage],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def states(job: str) -> dict[str, str]:
    """Return the state of each member of an array that is known, by its number."""
    lines = answer("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%K %T").splitlines()
    return dict(line.split() for line in lines)


def are_over(job: str) -> bool:
    return not set(states(job).values()) & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}


def test_an_array_survives_a_cancelled_member_and_training_follows(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "DATASET": "demo", "ENCODER": "tiny-text", "PAL": f"{Path(sys.executable).parent}/pal",
        "SETTINGS": " ".join(f"--set {one}" for one in SMALL),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    first = submit("--array=0-3", stage="embed")
    training = submit(f"--dependency=afterok:{first}", stage="train")
    wait_for("running member", lambda: states(first).get("3") == "RUNNING")
    wait_for("shard", lambda: bool(receipts()) or are_over(first))
    subprocess.run(["scancel", f"{first}_3"], check=True)
    wait_for("end of the array", lambda: are_over(first))
    found = states(first)
    assert {found[number] for number in "012"} == {"COMPLETED"}, logs()
    assert found["3"] in ("CANCELLED", "COMPLETED")
    print(f"members {found}, {len(receipts())} shards")
    if found["3"] == "CANCELLED":
        wait_for(
            "word that the training will never start",
            lambda: "NeverSatisfied" in answer("squeue", "-h", "-j", training, "-o", "%r"),
        )
    subprocess.run(["scancel", training], check=True)

    again = submit("--array=1,3", stage="embed")
    training = submit(f"--dependency=afterok:{again}", stage="train")
    wait_for("end of the array", lambda: are_over(again))
    assert states(again) == {"1": "COMPLETED", "3": "COMPLETED"}, logs()
    wait_for("end of the training", lambda: are_over(training))
    assert set(states(training).values()) == {"COMPLETED"}, logs()
    assert len(list(Path("runs").glob("*/head.safetensors"))) == 1
    assert list(Path("cache").glob("demo/tiny-text-*/manifest.json"))


def receipts() -> list[Path]:
    return list(Path("cache").glob("demo/tiny-text-*/shards/part-*.json"))


def logs() -> str:
    """Return the ends of what jobs and services have told."""
    place = Path(os.environ["SLURM_CONF"]).parent
    found = [*Path().glob("slurm-*.log"), *place.glob("*.out")]
    return "\n".join(f"{path}: {path.read_text()[-2000:]}" for path in found)
