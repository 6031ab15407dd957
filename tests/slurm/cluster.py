"""A real Slurm on this machine: munge, a controller, and nodes that each have a network, a host name and daemons of their own.

    python tests/slurm/cluster.py start FOLDER [NODES]    # then: export SLURM_CONF=FOLDER/slurm.conf
    python tests/slurm/cluster.py stop FOLDER

It takes under a second, needs root, and neither systemd nor cgroups; everything it writes is in FOLDER, and it is ended by process id.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged", "ip", "nsenter", "unshare", "mount")
CPUS = 4  # of a node, as Slurm counts them; the real ones are shared
CONF = """\
ClusterName=fivefold
SlurmctldHost=ctl({network}.254)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,requeue_delay=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
SlurmdTimeout=10
KillWait=60
MinJobAge=600
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# A requeued job waits until its credential has run out: two minutes by default, and five seconds (cred_expire) are the least.
NO_CGROUPS = "CgroupPlugin=cgroup/v1\nIgnoreSystemd=yes\nCgroupAutomount=no\n"


def missing() -> str | None:
    """Say why no Slurm can be had here; None if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "a Slurm of one's own needs root, for the networks of its nodes"
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    if lacking:
        return f"no Slurm: {', '.join(lacking)} not found (apt-get install slurm-wlm munge iproute2, or tests/slurm/install.sh)"
    name = f"fivefold{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no Slurm: this root may not make networks ({made.stderr.strip()})"
    run("ip", "netns", "del", name)
    return None


def run(*words: str) -> None:
    """Run a command that has to succeed."""
    subprocess.run(words, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@dataclass
class Cluster:
    """A running Slurm; `net` tells its networks from those of other clusters on this machine."""

    folder: str
    nodes: int
    net: int = 0

    def start(self) -> None:
        """Make the networks and start every daemon; what was started is stopped again when one fails."""
        for name in ("state", "spool"):
            (self.place / name).mkdir(parents=True)
        try:
            self._make_bridge()
            self._write_files()
            self.place.joinpath("cluster.json").write_text(json.dumps(asdict(self)))
            self._start_daemons()
        except BaseException:
            self.stop()
            raise

    @property
    def place(self) -> Path:
        return Path(self.folder)

    @property
    def network(self) -> str:
        return f"10.213.{self.net}"

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to talk to this Slurm, and not to another around it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return {**kept, "SLURM_CONF": f"{self.folder}/slurm.conf"}

    def ask(self, *words: str, timeout: float = 60) -> str:
        """Run a command of Slurm and return what it prints."""
        done = subprocess.run(words, env=self.environment, text=True, capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: int) -> dict[str, str]:
        """Read what the controller knows of a job."""
        return dict(word.partition("=")[::2] for word in self.ask("scontrol", "show", "job", "-o", str(number)).split() if "=" in word)

    def wait_for(self, number: int, *states: str, timeout: float = 120) -> dict[str, str]:
        """Wait until a job is in one of some states; AssertionError if it never is."""
        end = time.monotonic() + timeout
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < end, f"job {number} is {job['JobState']} ({job['Reason']}) and not {states} after {timeout} s"
            time.sleep(0.3)
        return job

    def kill_daemon(self, node: int) -> None:
        """End the daemon of a node as a crash would; its tasks live on."""
        end_process(self.place / f"slurmd-node{node}.pid", signal.SIGKILL)

    def kill_node(self, node: int) -> None:
        """End every process of a node as a power failure would."""
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, node: int) -> list[int]:
        """List every process of a node: its daemon, jobs and tasks."""
        listed = subprocess.run(["ip", "netns", "pids", self._name("n", node)], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def start_node(self, node: int) -> None:
        """Start the daemon of a node in its own network and under its own host name."""
        own = ("unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c")
        names = f"hostname node{node} && mount --bind {self.folder}/hosts /etc/hosts"
        daemon = f"exec slurmd -f {self.folder}/slurm.conf -N node{node}"
        run("nsenter", f"--net=/run/netns/{self._name('n', node)}", *own, f"{names} && {daemon}")

    def stop(self) -> None:
        """End everything of this cluster, and nothing else."""
        for node in range(1, self.nodes + 1):
            self.kill_node(node)
        for name in ("slurmctld.pid", "munged.pid"):
            end_process(self.place / name, signal.SIGTERM)
        for node in range(1, self.nodes + 1):
            subprocess.run(["ip", "netns", "del", self._name("n", node)], capture_output=True)
        subprocess.run(["ip", "link", "del", self._name("b")], capture_output=True)

    def _name(self, kind: str, number: int | str = "") -> str:
        return f"fivefold{self.net}{kind}{number}"  # at most 15 characters

    def _make_bridge(self) -> None:
        """Take the first network that is free: of several clusters that start at once, only one can make the same bridge."""
        for net in range(1, 250):
            self.net = net
            if subprocess.run(["ip", "link", "add", self._name("b"), "type", "bridge"], capture_output=True).returncode == 0:
                break
        bridge = self._name("b")
        run("ip", "addr", "add", f"{self.network}.254/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        for node in range(1, self.nodes + 1):
            name, cable = self._name("n", node), self._name("v", node)
            run("ip", "netns", "add", name)
            run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", cable, "master", bridge, "up")
            run("ip", "-n", name, "addr", "add", f"{self.network}.{node}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                run("ip", "-n", name, "link", "set", device, "up")

    def _write_files(self) -> None:
        numbers = range(1, self.nodes + 1)
        size = f"CPUs={CPUS} CoresPerSocket={CPUS} RealMemory=8000"
        nodes = "\n".join(f"NodeName=node{n} NodeAddr={self.network}.{n} {size}" for n in numbers)
        port = free_port(26817 + 2 * self.net)
        text = CONF.format(folder=self.folder, network=self.network, port=port, node_port=port + 1, nodes=nodes)
        (self.place / "slurm.conf").write_text(text)
        (self.place / "cgroup.conf").write_text(NO_CGROUPS)
        hosts = [f"{self.network}.254 ctl", *(f"{self.network}.{n} node{n}" for n in numbers)]
        (self.place / "hosts").write_text(Path("/etc/hosts").read_text() + "\n" + "\n".join(hosts) + "\n")
        key = self.place / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))

    def _start_daemons(self) -> None:
        self.place.chmod(0o711)  # munged refuses a socket whose folder others cannot enter
        files = {"key": "munge.key", "log": "munged.log", "pid": "munged.pid", "seed": "munge.seed"}
        options = [f"--{kind}-file={self.folder}/{name}" for kind, name in files.items()]
        run("munged", *options, f"--socket={self.folder}/munge.socket", "--num-threads=2", "--force")
        run("unshare", "--uts", "sh", "-c", f"hostname ctl && exec slurmctld -f {self.folder}/slurm.conf")
        for node in range(1, self.nodes + 1):
            self.start_node(node)
        end = time.monotonic() + 30
        while len(self.ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()) < self.nodes:
            assert time.monotonic() < end, f"the nodes did not come up: see the logs in {self.folder}"
            time.sleep(0.1)


def free_port(first: int) -> int:
    """Find a port from `first` on such that it and the next one are free."""
    for port in range(first, first + 2000, 2):
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("", port))
            other.bind(("", port + 1))
            return port
    raise OSError("no free port for Slurm")


def end_process(pid_file: Path, number: signal.Signals) -> None:
    """Send a signal to the process of a pid file, and kill it if it has not ended in five seconds."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, number)
        for _ in range(100):
            time.sleep(0.05)
            os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)


def main(words: list[str]) -> int:
    """Start or stop a cluster from a shell."""
    if len(words) < 2 or words[0] not in ("start", "stop"):
        print(__doc__)
        return 2
    folder = Path(words[1]).absolute()
    if words[0] == "stop":
        Cluster(**json.loads((folder / "cluster.json").read_text())).stop()
        return 0
    if reason := missing():
        print(reason, file=sys.stderr)
        return 1
    cluster = Cluster(str(folder), int(words[2]) if len(words) > 2 else 2)
    cluster.start()
    print(f"export SLURM_CONF={folder}/slurm.conf")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
