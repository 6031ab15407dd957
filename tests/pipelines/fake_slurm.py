"""Commands named like Slurm's that write down how they were called and answer what a test says, for tests that need no Slurm."""

import os

ANSWERS = {
    "sinfo": "echo debug",
    "sbatch": "cat >/dev/null; if [ \"$1\" = --parsable ]; then cp \"$2\" \"$FAKE/script\"; echo 4711; "
              "else echo 'sbatch: Job 1 to start now' >&2; fi",
    "squeue": "echo ${STATE-RUNNING}",
    "scontrol": "exit ${REFUSES:-0}",
    # the options of srun go; a check of pipelines.requeue is made as it is, and TRAINING stands for the training
    "srun": "while [[ $1 == --* ]]; do shift; done; if [[ $* == *pipelines.requeue* ]]; then exec \"$@\"; fi; eval \"$TRAINING\"",
}


class FakeSlurm:
    """A folder of such commands, to be put first on PATH; `calls` lists what was called, in order."""

    def __init__(self, folder, **answers):
        self.folder = folder
        folder.mkdir()
        for name, answer in {**ANSWERS, **answers}.items():
            path = folder / name
            path.write_text(f"#!/bin/bash\nexport FAKE={folder}\necho \"{name} $*\" >>{folder}/calls\n{answer}\n")
            path.chmod(0o755)

    @property
    def path(self):
        return f"{self.folder}:{os.environ['PATH']}"

    def calls(self, name):
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.partition(" ")[2] for line in lines if line.split(" ")[0] == name]
