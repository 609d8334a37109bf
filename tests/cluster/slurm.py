"""A real Slurm on loopback: the system's slurmctld and slurmd, with two CPUs and two GPUs that are only names.

    apt-get install slurmctld slurmd slurm-client
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "squeue", "srun", "sinfo")
CONF = """
ClusterName=loopback
SlurmctldHost=localhost
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={spool}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=65536 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What of Slurm this machine lacks, in words; empty where nothing is."""
    found = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    lacking = [name for name in NEEDED if shutil.which(name, path=found) is None]
    if lacking:
        return f"no {', '.join(lacking)} here (apt-get install slurmctld slurmd slurm-client)"
    return "" if os.geteuid() == 0 else "slurmd has to be started by root"


class Slurm:
    """The two daemons over one folder; `spool` has a short name, as a socket's may have 108 letters and no more."""

    def __init__(self, folder: Path, spool: Path) -> None:
        (folder / "state").mkdir(parents=True)
        self.folder = folder
        ports = {"controller": _free_port(), "node": _free_port()}
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, spool=spool, user="root", **ports))
        # A GPU has to be a device. Slurm counts these two and hands them out; nothing is ever written to them.
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"),
                            "PATH": os.pathsep.join((str(self._own_srun()), os.environ["PATH"]))}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def _own_srun(self) -> Path:
        """A folder with an `srun` that knows this Slurm: Snakemake's plugin drops SLURM_CONF before it."""
        script = self.folder / "bin" / "srun"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        script.chmod(0o755)
        return script.parent

    def start(self, name: str) -> None:
        """Start a daemon, in a session of its own: what ends this process does not end its jobs."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [shutil.which(name, path="/usr/sbin:/sbin:/usr/bin") or name, "-D"], stdin=subprocess.DEVNULL,
                env=os.environ | self.environment, stdout=log, stderr=log, start_new_session=True)

    def stop(self, name: str) -> None:
        """End a daemon."""
        self.daemons[name].terminate()
        self.daemons.pop(name).wait()

    def ask(self, *command: str) -> str:
        """What a command of Slurm's answers; empty while nobody is there to answer."""
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300,
                              env=os.environ | self.environment).stdout.strip()


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """A Slurm that takes jobs; its jobs end with it."""
    spool = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Slurm(folder, spool)
    try:
        for name in ("slurmctld", "slurmd"):
            cluster.start(name)
        while (state := cluster.ask("sinfo", "--noheader", "--format=%t")) != "idle":
            ended = [name for name, daemon in cluster.daemons.items() if daemon.poll() is not None]
            if ended or state[:5] in ("inval", "drain"):
                raise RuntimeError("\n".join((folder / f"{name}.log").read_text() for name in ("slurmctld", "slurmd")))
            time.sleep(0.2)
        yield cluster
    finally:
        cluster.ask("scancel", "--user=root")
        while cluster.daemons.get("slurmctld") and cluster.ask("squeue", "--noheader"):
            time.sleep(0.2)
        for name in list(cluster.daemons):
            cluster.stop(name)
        shutil.rmtree(spool, ignore_errors=True)  # a job that has just ended may still write there


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
