"""Where metrics go: metrics.csv in the run folder always, W&B beside it."""

import csv
import io
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from pipelines.config import ConfigError, to_mapping
from pipelines.schema import RunConfig

INIT_SECONDS = 30.0  # after which a W&B server that does not answer is given up, and the run kept on disk
FINISH_SECONDS = 120.0  # for the upload that is left at the end


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


def wandb_logger(config: RunConfig, folder: Path) -> WandbLogger:
    """Start the W&B run; a resumed one goes on under the id kept in its folder. A server that fails costs a warning, not the run."""
    import wandb

    mode = wandb_mode(config.logger.mode)
    if mode == "online" and not logged_in():  # on a terminal, wandb would ask
        raise ConfigError("logger.mode: online, but W&B is not logged in; run wandb login, or write logger.mode=auto")
    try:
        run = _start(config, folder, mode)
    except wandb.errors.Error as error:
        if mode == "offline":
            raise
        reason = str(error).splitlines()[0]
        print(f"warning: W&B is kept on disk, because the server does not take it ({reason})", file=sys.stderr)
        wandb.teardown()  # its service still holds the id
        run = _start(config, folder, "offline")
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    if not run.offline:
        print(f"W&B: {run.url}")
    return WandbLogger(experiment=run)


def _start(config: RunConfig, folder: Path, mode: str) -> Any:
    import wandb

    kept = folder / "wandb-id"
    if not kept.exists():
        kept.write_text(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    return wandb.init(
        name=folder.name, dir=folder, id=kept.read_text().strip(), resume="allow", mode=mode,  # type: ignore[arg-type]
        project=config.logger.project, entity=config.logger.entity, group=config.logger.group, tags=list(config.run.tags),
        notes=config.run.notes, job_type=config.method, config=to_mapping(config),
        settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS),
    )


def close_wandb(loggers: list[Logger], picture: Path, failed: bool) -> None:
    """Send the picture of a run and finish it in W&B, if it is there."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            if picture.exists():
                logger.log_image("loss", [str(picture)])
            run = logger.experiment
            run.finish(exit_code=int(failed))
            if run.offline:
                print(f"W&B: kept on disk; wandb sync {picture.parent}/wandb/offline-run-* sends it")
