"""A real SLURM of one node, started for the tests and stopped after them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safemax_pl.common.files import PROJECT

NEEDED = ("setpriv", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"])  # where Debian keeps daemons

# cred_expire is also how long a requeued job waits before it starts again, 120 s by default
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=0
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=localhost PriorityTier=2 PreemptMode=OFF
"""


class Cluster:
    """The clients of one cluster, and what its jobs print."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen] = {}
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "WANDB"))}
        self.environment = {
            **outside,
            "PATH": PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHONPATH": str(PROJECT),
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
        }

    def __call__(self, *command: str | Path, **environment: str) -> str:
        """Run a client of SLURM; returns what it prints."""
        done = subprocess.run(
            command, env=self.environment | environment, cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *arguments: str | Path, **environment: str) -> str:
        """Submit a job; returns its number."""
        return self("sbatch", "--parsable", f"--output={self.folder}/%j.out", *arguments, **environment)

    def output(self, job: str) -> str:
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        words = self("scontrol", "--oneliner", "show", "job", job).split()
        return {key: value for key, _, value in (word.partition("=") for word in words)}

    def minutes(self, job: str) -> int:
        """Whole minutes that a job has been running."""
        hours, minutes, _ = self.show(job)["RunTime"].split(":")
        return 60 * int(hours) + int(minutes)

    def wait(self, what: str, done: Callable[[], bool], seconds: float = 900) -> None:
        """Wait until `done()`; what takes so long hangs."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s\n{self('squeue')}\n{self.logs()}"
            time.sleep(0.3)

    def completed(self, job: str) -> dict[str, str]:
        """Wait for the end of a job, which must be a good one; returns what `show` says then."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.wait(f"end of job {job}", lambda: self.show(job)["JobState"] in ended)
        shown = self.show(job)
        assert shown["JobState"] == "COMPLETED", f"{shown}\n{self.output(job)}"
        return shown

    def start(self, *daemon: str) -> None:
        """Start a daemon, which ends with the tests, whatever ends them."""
        with (self.folder / f"{daemon[0]}.log").open("a") as log:
            command = ["setpriv", "--pdeathsig=TERM", *daemon]
            self.daemons[daemon[0]] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start_node(self) -> None:
        self.start("slurmd", "-D", "-N", "localhost", "-f", f"{self.folder}/slurm.conf")

    def crash_node(self, job: str) -> None:
        """Kill all that runs on the node, as if its power had failed, and start it again."""
        self.daemons["slurmd"].kill()
        self.daemons["slurmd"].wait()
        kill_job(job)
        self("scontrol", "update", "node=localhost", "state=down", "reason=test")
        self.wait("end of the job", lambda: self.show(job)["JobState"] == "PENDING")
        self.start_node()
        self("scontrol", "update", "node=localhost", "state=resume")

    def stop(self) -> None:
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def logs(self) -> str:
        files = sorted([*self.folder.glob("*.out"), *self.folder.glob("*.log")])
        return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in files)


def kill_job(job: str) -> None:
    """Kill all processes of a job, SLURM's own first, which would report their end."""
    own, others = [], []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if f"slurmstepd: [{job}." in (process / "cmdline").read_text(errors="replace"):
                own.append(process)
            elif f"SLURM_JOB_ID={job}\0" in (process / "environ").read_text(errors="replace"):
                others.append(process)
    assert own and others, f"job {job} does not run"
    for process in (*own, *others):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process.name), signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Its own ports, key and folder: a cluster that this machine belongs to is not touched."""
    if missing := [name for name in NEEDED if shutil.which(name, path=PATH) is None]:
        pytest.skip(f"no SLURM here ({', '.join(missing)} not found): apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs as root only")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short, as a socket's path must be
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, ports=free_ports(2), folder=folder))
    cluster = Cluster(folder)
    munge = ("key-file=munge.key", "socket=munge.socket", "pid-file=munged.pid", "seed-file=munged.seed")
    try:
        cluster.start("munged", "--foreground", *(f"--{option.replace('=', f'={folder}/')}" for option in munge))
        cluster.wait("munged", (folder / "munge.socket").exists)
        cluster.start("slurmctld", "-D", "-f", f"{folder}/slurm.conf")
        cluster.start_node()
        sinfo = ["sinfo", "--noheader", "--format=%T"]
        cluster.wait(
            "an idle node",
            lambda: (
                subprocess.run(sinfo, env=cluster.environment, capture_output=True, text=True).stdout.split()
                == ["idle"]
            ),
        )
        yield cluster
        cluster("scancel", "--user=root")
        cluster.wait("end of all jobs", lambda: cluster("squeue", "--noheader") == "")
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
