"""Where metrics go: metrics.csv in the run folder always, W&B beside it."""

import csv
import io
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from pipelines.artifacts import keep_artifacts
from pipelines.config import ConfigError, files_chosen, to_mapping
from pipelines.runs import PICTURE, SWEEP, read_record
from pipelines.schema import TAG, RunConfig

INIT_SECONDS = 30.0  # after which a W&B server that does not answer is given up, and the run kept on disk
FINISH_SECONDS = 120.0  # for the upload that is left at the end
UPLOAD_SECONDS = 1800.0  # where that includes checkpoints
STARTED = "started"  # the key of W&B's config under which a run tells its last start, with these facts of it:
TOLD = ("time", "host", "python", "from_step", "git_commit", "git_dirty", "packages")


class MetricsFile(Logger):
    """Write FOLDER/metrics.csv: one row for each step that logged something, with all that was logged at it.

    Lightning's CSVLogger writes several rows for a step, and deletes the file of a run that is resumed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self._columns = ["step", "epoch"]
        self._row: dict[str, Any] = {}  # the last one; more may come to it
        self._start = 0  # where it begins in the file, in bytes

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the run folder holds config.yaml."""

    @rank_zero_only
    def rewind(self, steps: int) -> None:
        """Go on with an existing file: keep the rows of the first `steps` steps; the later ones come again."""
        if not self.path.is_file():
            return
        rows = [row for row in self._rows(self.path.read_bytes()) if int(row["step"]) < steps]
        self._columns += [key for key in dict.fromkeys(k for row in rows for k in row) if key and key not in self._columns]
        self._write_all(rows)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add metrics to the row of `step`, counted from 0; `save` writes it."""
        if self._row.get("step") != step:
            self._row, self._start = {}, self.path.stat().st_size if self.path.is_file() else 0
        self._row.update(metrics, step=step)

    @rank_zero_only
    def save(self) -> None:
        """Bring the last row of the file up to date; a new metric is a new column, for which all rows are written again."""
        if not self._row:
            return
        new = [key for key in self._row if key not in self._columns]
        if new or not self._start:
            self._columns += new
            self._write_all(self._rows(self.path.read_bytes()[: self._start]) if self._start else [])
        line = io.StringIO()
        csv.DictWriter(line, self._columns, lineterminator="\n").writerow(self._row)
        with self.path.open("r+b") as file:
            file.truncate(self._start)
            file.seek(self._start)
            file.write(line.getvalue().encode())

    def finalize(self, status: str) -> None:
        self.save()

    def _rows(self, content: bytes) -> list[dict[str, str]]:
        """Read whole rows: the last one is cut off where the machine stopped in the middle of it."""
        return list(csv.DictReader(io.StringIO(content[: content.rfind(b"\n") + 1].decode())))

    def _write_all(self, rows: list[dict[str, str]]) -> None:
        part = self.path.with_name(self.path.name + ".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, self.path)
        self._start = self.path.stat().st_size


class Tracker(WandbLogger):
    """Lightning's logger of W&B, which lets a run go on without it where the process that W&B's client talks to has gone."""

    def __init__(self, run: Any, folder: Path, prefix: str = "") -> None:
        super().__init__(experiment=run, prefix=prefix)
        self.folder, self.lost = folder, False

    def beside(self, prefix: str) -> "Tracker":
        """Return a logger of the same run, whose figures have a name before theirs; what it loses is lost to this one, too."""
        logger = Tracker(self.experiment, self.folder, prefix)
        logger.attempt = self.attempt  # type: ignore[method-assign]
        return logger

    def attempt(self, work: Callable[..., Any], *args: Any, **words: Any) -> None:
        """Do what needs the process, if it is there; the first time that it is not costs a warning."""
        if self.lost:
            return
        try:
            work(*args, **words)
        except ConnectionError:
            self.lost = True
            print(f"warning: W&B's own process has gone, and the run goes on without it; wandb sync {self.folder}/wandb/*run-* sends what "
                  "was written before", file=sys.stderr)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.attempt(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        self.attempt(super().log_hyperparams, params)

    @rank_zero_only
    def log_table(self, *args: Any, **words: Any) -> None:
        self.attempt(super().log_table, *args, **words)

    @rank_zero_only
    def log_image(self, *args: Any, **words: Any) -> None:
        self.attempt(super().log_image, *args, **words)


def wandb_mode(mode: str) -> str:
    """Turn `auto` into WANDB_MODE if that is set, else online when logged in and offline otherwise; never ask."""
    if mode != "auto":
        return mode
    wished = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    return {"run": "online", "dryrun": "offline"}.get(wished, wished)


def logged_in() -> bool:
    """Ask wandb whether it finds credentials for its server, good or bad: with bad ones, starting a run says what is wrong."""
    import wandb
    from wandb.sdk.lib.wbauth import authenticate_session

    try:
        return bool(authenticate_session(host=wandb.setup().settings.base_url, source="fivefold", prompt=False, update_session=False))
    except wandb.errors.Error:
        return True


def wandb_logger(config: RunConfig, folder: Path, work: str = "train") -> Tracker:
    """Start the W&B run; a resumed one goes on under the id kept in its folder. A server that fails costs a warning, not the run."""
    import wandb

    mode = wandb_mode(config.logger.mode)
    if mode == "online" and not logged_in():  # on a terminal, wandb would ask
        raise ConfigError("logger.mode: online, but W&B is not logged in; run wandb login, or write logger.mode=auto")
    try:
        run = _start(config, folder, mode, work)
    except wandb.errors.Error as error:
        if mode == "offline":
            raise
        reason = str(error).splitlines()[0]
        print(f"warning: W&B is kept on disk, because the server does not take it ({reason})", file=sys.stderr)
        wandb.teardown()  # its service still holds the id
        run = _start(config, folder, "offline", work)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    if not run.offline:
        print(f"W&B: {run.url}")
    return Tracker(run, folder)


def _start(config: RunConfig, folder: Path, mode: str, work: str) -> Any:
    import wandb

    kept = folder / "wandb-id"
    if not kept.exists():
        kept.write_text(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    uploads = config.logger.checkpoints == "upload"
    run = wandb.init(
        name=folder.name, dir=folder, id=kept.read_text().strip(), resume="allow", mode=mode,  # type: ignore[arg-type]
        project=config.logger.project, entity=config.logger.entity, group=config.logger.group, tags=labels(config),
        notes=config.run.notes, job_type=kind_of_work(folder, work), config={"defaults": files_chosen(config), **to_mapping(config)},
        settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS, finish_timeout_raises=True,
                                finish_timeout=UPLOAD_SECONDS if uploads else FINISH_SECONDS),
    )
    start: dict[str, Any] = next(reversed(read_record(folder).get("started", [])), {})
    run.config.update({STARTED: {key: value for key, value in start.items() if key in TOLD}}, allow_val_change=True)
    return run


def labels(config: RunConfig) -> list[str]:
    """Return the tags of a run: the user's, its method, its experiment and its optimizer."""
    own = [config.method, config.experiment, f"optim={config.choices['optim']}"]
    return list(dict.fromkeys([*config.run.tags, *(tag for tag in own if tag and len(tag) <= TAG)]))


def kind_of_work(folder: Path, work: str) -> str:
    """Name W&B's type of job: a training that an agent of W&B or a local search has started is part of a sweep."""
    return "sweep" if "WANDB_SWEEP_ID" in os.environ or (folder.parent / SWEEP).is_file() else work


def close_wandb(loggers: list[Logger], config: RunConfig, folder: Path, results: dict[str, float] | None) -> None:
    """Send what a run leaves at its end and finish it in W&B, if it is there; `results` are its last figures, None if it did not finish."""
    for logger in loggers:
        if isinstance(logger, Tracker):
            run = logger.experiment
            if (folder / PICTURE).exists():
                logger.log_image("loss", [str(folder / PICTURE)])
            if results is not None:
                logger.attempt(run.summary.update, results)
                logger.attempt(keep_artifacts, run, config, folder)
            logger.attempt(_finish, run, folder, failed=results is None)
            if logger.lost:
                _forget()


def _forget() -> None:
    """Have W&B's client let go of a process that has gone, which it would otherwise look for at the interpreter's end."""
    import wandb

    with suppress(ConnectionError):
        wandb.teardown()


def _finish(run: Any, folder: Path, failed: bool) -> None:
    """Wait for what is still on its way, though not for ever, and say how to send what is on disk."""
    began = time.monotonic()
    try:
        run.finish(exit_code=int(failed))
    except TimeoutError:
        print(f"warning: W&B did not take all in {time.monotonic() - began:.0f} s; wandb sync {folder}/wandb/run-* sends the rest",
              file=sys.stderr)
    if run.offline:
        print(f"W&B: kept on disk; wandb sync {folder}/wandb/offline-run-* sends it")
