"""Signals to a run at moments that its output tells."""

import random
import time


def signal_after(process, step, send):
    """Call `send` with the run's process id when it has reported `step` and a random moment has passed; return everything it printed."""
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith(f"step {step}/"):
            time.sleep(random.random() * 0.03)
            send(process.pid)
    process.wait(timeout=120)
    return "".join(printed)
