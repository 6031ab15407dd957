"""Train two steps as the words say, and print the most memory that was in large blocks during the second, as JSON.

The C library is asked every millisecond. It has to be told, by MALLOC_MMAP_THRESHOLD_=65536, to keep large blocks apart: these are
tensors, whatever allocated them and in which thread.
"""

import ctypes
import json
import os
import sys
import threading
import time
import warnings

import torch
from lightning.pytorch.callbacks import Callback

from pipelines.build import build
from pipelines.config import compose


class MallInfo(ctypes.Structure):
    """The C library's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
                                                     "fordblks", "keepcost")]


ask = ctypes.CDLL(None).mallinfo2
ask.restype = MallInfo


class Watch(Callback):
    """Watches during the second optimizer step; then notes the state that the optimizer holds."""

    def __init__(self):
        self.peak = 0
        self.over = threading.Event()

    def watch(self):
        while not self.over.is_set():
            self.peak = max(self.peak, ask().hblkhd)
            time.sleep(0.001)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == trainer.accumulate_grad_batches:
            self.thread = threading.Thread(target=self.watch)
            self.thread.start()

    def on_train_end(self, trainer, pl_module):
        self.over.set()
        self.thread.join()
        optimizer = trainer.optimizers[0]
        entries = (optimizer if hasattr(optimizer, "entries") else optimizer.optimizer).entries
        self.state = sum(value.nbytes for entry in entries.values() for value in entry.values())


def main():
    warnings.simplefilter("ignore")
    config = compose(sys.argv[1:])
    built = build(config, None)
    before, watch = ask().hblkhd, Watch()
    built.trainer.callbacks.append(watch)
    built.trainer.fit(built.module, datamodule=built.data)
    report = {"rank": int(os.environ.get("RANK", "0")), "peak": watch.peak - before, "state": watch.state}
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


main()
