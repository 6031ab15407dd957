#!/usr/bin/env bash
# Show it: start a Slurm on this machine, queue a training on two nodes, have it queued again in the middle, and compare the result with
# that of a run that nothing interrupted. Needs root. PYTHON is the interpreter with Fivefold; further words go to both trainings.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-$repository/.venv/bin/python}
export PYTHONPATH=$repository OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
bash "$repository/tests/slurm/install.sh"
place=$(mktemp -d)
chmod 711 "$place"
"$PYTHON" -P "$repository/tests/slurm/cluster.py" start "$place/slurm" 2
trap '"$PYTHON" -P "$repository/tests/slurm/cluster.py" stop "$place/slurm"; rm -rf "$place"' EXIT
export SLURM_CONF=$place/slurm/slurm.conf

experiment=${EXPERIMENT:-fira_debug}
words=(experiment="$experiment" strategy=ddp trainer.accelerator=cpu trainer.threads=1 trainer.max_steps=${STEPS:-60} trainer.log_every_n_steps=1
    logger=csv run.root="$place/runs" data.cache="$place/cache" "$@")
fivefold() { "$PYTHON" -P -m pipelines "$@"; }

fivefold train "${words[@]}" trainer.devices=2 run.name=whole >"$place/whole.txt"
fivefold submit --nodes 2 --time 30 --job-name queued -- train "${words[@]}" | tee "$place/submit.txt"
job=$(sed -n 's/^job \([0-9]*\) is queued/\1/p' "$place/submit.txt")
log=$place/runs/queued/job/log.txt
for _ in $(seq 1200); do if grep -q "step 5/" "$log" 2>/dev/null; then break; fi; sleep 0.1; done
echo "scontrol requeue $job"
scontrol requeue "$job"
for _ in $(seq 1800); do
    state=$(scontrol show job -o "$job" | sed 's/.*JobState=\([A-Z_]*\).*/\1/')
    case $state in COMPLETED) break ;; FAILED | TIMEOUT | CANCELLED) cat "$log"; exit 1 ;; esac
    sleep 0.2
done
grep -E "starting|resumed|queued again|stopped|finished" "$log"
"$PYTHON" -P - "$place/runs/whole" "$place/runs/queued" <<'END'
import sys
from pathlib import Path

from tests.exactness import assert_same, rows, state

whole, queued = map(Path, sys.argv[1:])
assert_same(state(whole), state(queued))
assert rows(whole) == rows(queued)
print(f"equal: all weights, the optimizer's state and the metrics of {len(rows(whole))} steps, bit for bit")
END
