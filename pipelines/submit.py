"""fivefold submit: queue a run in Slurm, with its code and settings as they are now."""

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

from pipelines.batch import Job, script, snapshot
from pipelines.config import ConfigError, compose
from pipelines.errors import hint
from pipelines.resume import Place, place_for, with_settings_of_run
from pipelines.runs import JOB, RECORD, command_line, queue_record
from pipelines.schema import RunConfig

FLAGS = {  # those of sbatch -> what they set
    "--nodes": "trainer.num_nodes", "--ntasks-per-node": "trainer.devices", "--gpus-per-node": "trainer.devices",
    "--time": "cluster.time", "--partition": "cluster.partition", "--account": "cluster.account", "--qos": "cluster.qos",
    "--constraint": "cluster.constraint", "--mem": "cluster.memory", "--cpus-per-task": "cluster.cpus",
    "--container-image": "cluster.container", "--container-mounts": "cluster.mounts", "--job-name": "run.name",
}
NUMBER = "number"  # the file that keeps the number of the newest job of a run
USAGE = """fivefold submit [--nodes N] [--time H:MM:SS] [flag value …] [--dry-run] -- train method=NAME [section.key=value …]

Queues a run of trainer.num_nodes x trainer.devices processes in Slurm. The code and the settings are copied into the run folder, so
that later edits do not change a queued run. The job is queued again at its time limit, after preemption and when a node fails, and goes on.
  --dry-run  show the script and the checks, write and queue nothing
"""


def run(argv: list[str]) -> int:
    """Queue what the words mean; exit status 2 for words or a cluster that do not fit, before anything is queued."""
    if {"--help", "-h"} & {*_before(argv)}:
        print(USAGE + "flags:\n" + "\n".join(f"  {flag:<20} {key}" for flag, key in FLAGS.items()))
        return 0
    dry, words = read(argv)
    config = compose(words)
    if config.cluster.name != "slurm":
        raise ConfigError(f"cluster={config.cluster.name}: queues nothing. Write cluster=slurm, or fivefold train")
    config, folder = settled(config)
    _refuse_queued(folder)
    job = Job(folder, config)
    return _show(job) if dry else _queue(job)


def _before(argv: list[str]) -> list[str]:
    return argv[: argv.index("--")] if "--" in argv else argv


def read(argv: list[str]) -> tuple[bool, list[str]]:
    """Return whether this is a dry run, and the words of a training that the flags and the words after `--` mean."""
    before = _before(argv)
    after = argv[len(before) + 1 :]
    dry = "--dry-run" in before
    flags = _flags([word for word in before if word != "--dry-run"])
    if after[:1] != ["train"]:
        raise ConfigError(f"submit: {after[0] if after else 'no command'} after --. Write fivefold submit [flag …] -- train method=NAME …")
    words = with_settings_of_run(after[1:])
    given = dict(word.partition("=")[::2] for word in words)
    for key, (flag, value) in flags.items():
        if given.get(key, value) != value:
            raise ConfigError(_contradiction(key, flag, value, given, flags))
    chosen = [] if "cluster" in given else ["cluster=slurm"]
    return dry, [*chosen, *(f"{key}={value}" for key, (_, value) in flags.items() if key not in given), *words]


def _flags(words: list[str]) -> dict[str, tuple[str, str]]:
    """Read flags with their values, as `--time 60` or `--time=60`: key -> flag and value."""
    found: dict[str, tuple[str, str]] = {}
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag not in FLAGS:
            other = "" if flag.startswith("-") else " Settings stand after -- train."
            raise ConfigError(f"{word}: no such flag of submit.{hint(flag, [*FLAGS, '--dry-run'])}{other} Flags: {', '.join(FLAGS)}, "
                              "--dry-run; others of sbatch go into 'cluster.options=[--FLAG=VALUE]'")
        value = value if equals else next(rest, "")
        if not value:
            raise ConfigError(f"{flag}: no value. Write {flag} VALUE")
        key = FLAGS[flag]
        if key in found and found[key][1] != value:
            raise ConfigError(f"{flag} {value}: but {found[key][0]} {found[key][1]}, and both say {key}. Keep one")
        found[key] = (flag, value)
    return found


def _contradiction(key: str, flag: str, value: str, given: dict[str, str], flags: dict[str, tuple[str, str]]) -> str:
    """Explain a flag that says something else than a word, in processes if it is about these."""
    text = f"{flag} {value}: but {key}={given[key]}"
    if key in ("trainer.num_nodes", "trainer.devices"):
        asked = [flags.get(k, ("", given.get(k, "1")))[1] for k in ("trainer.num_nodes", "trainer.devices")]
        trained = [given.get(k, flags.get(k, ("", "1"))[1]) for k in ("trainer.num_nodes", "trainer.devices")]
        text += (f". {asked[0]} nodes x {asked[1]} tasks would be queued, for a run of trainer.num_nodes={trained[0]} x "
                 f"trainer.devices={trained[1]} processes")
    return f"{text}. Keep one of the two"


def settled(config: RunConfig) -> tuple[RunConfig, Path]:
    """Give a run its folder now, which each start of the job goes on in."""
    place: Place = place_for(config)
    source = place.checkpoint
    if source is not None and source.parent.parent != place.folder:
        raise ConfigError(f"run.resume: a job goes on in a run folder, from its newest checkpoint, and {source} is not that. "
                          "Start with fivefold train, then submit -- train run.resume=FOLDER")
    section = dataclasses.replace(config.run, name=place.folder.name, root=str(place.folder.parent), resume=None)
    return dataclasses.replace(config, run=section), place.folder


def _refuse_queued(folder: Path) -> None:
    """Refuse a run that a job has already queued or trains."""
    file = folder / JOB / NUMBER
    if file.exists() and shutil.which("squeue"):
        number = file.read_text()
        done = subprocess.run(["squeue", "--noheader", f"--jobs={number}", "--format=%T"], capture_output=True, text=True, timeout=60)
        if done.returncode == 0 and (state := done.stdout.strip()):
            raise ConfigError(f"run.name: {folder} is job {number} already ({state}); scancel {number}, or choose another name")


def _show(job: Job) -> int:
    print(script(job))
    for line in _checks(job):
        print(line)
    if reason := no_cluster():
        print(f"Slurm: {reason}, so whether a cluster takes this job was not asked; nothing was queued")
        return 0
    done = subprocess.run(["sbatch", "--test-only"], input=script(job), capture_output=True, text=True, timeout=60)
    print(f"Slurm: {_last_line(done)}; nothing was queued")
    return 0 if done.returncode == 0 else 2


def no_cluster() -> str | None:
    """Say why no job can be queued from this machine; None if one can."""
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return "no sbatch on this machine"
    done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=120)
    return f"no cluster answers ({_last_line(done)})" if done.returncode else None


def _checks(job: Job) -> list[str]:
    """Say what was checked: the settings, the processes, and where everything goes."""
    t = job.config.trainer
    return [f"processes: {t.num_nodes} nodes x {t.devices} tasks = {t.num_nodes * t.devices} = trainer.num_nodes x trainer.devices",
            f"settings: method {job.config.method}, strategy={job.config.strategy.name}; composed without complaint",
            f"run folder: {job.folder}, which all nodes must see"]


def _queue(job: Job) -> int:
    """Write the job folder and hand the script to sbatch; what sbatch refuses leaves no folder behind."""
    if reason := no_cluster():
        raise ConfigError(f"submit: {reason}. Go to a login node of a Slurm cluster, or add --dry-run to see the script")
    new, record = not job.folder.exists(), job.folder / RECORD
    before = None if new or not record.exists() else record.read_text()
    path = snapshot(job, script(job))
    queue_record(job.config, job.folder, command_line())  # now: a job that starts at once writes it, too
    try:
        number = hand_over(path)
    except ConfigError:
        if new:
            shutil.rmtree(job.folder)
        elif before is not None:
            record.write_text(before)
        raise
    (job.folder / JOB / NUMBER).write_text(number)
    for line in (f"job {number} is queued", *_checks(job), f"log: {job.folder / JOB / 'log.txt'}"):
        print(line)
    return 0


def hand_over(path: Path) -> str:
    """Give a script to sbatch and return the number of the job; ConfigError with what sbatch says against it."""
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, timeout=120, env=_clean())
    if done.returncode != 0:
        raise ConfigError(f"submit: sbatch says: {_last_line(done)}")
    return done.stdout.strip().splitlines()[-1].partition(";")[0]


def _clean() -> dict[str, str]:
    """Leave out what a job around this one has set, which sbatch would take for options."""
    set_by_jobs = ("SLURM_", "SBATCH_", "SRUN_")
    return {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not name.startswith(set_by_jobs)}


def _last_line(done: "subprocess.CompletedProcess[str]") -> str:
    lines = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
    return lines[-1].rpartition("error: ")[2].rpartition("fatal: ")[2]
