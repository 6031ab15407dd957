import csv
from types import SimpleNamespace

import numpy as np
import soundfile
import wandb
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from datamodules.av_questions import Audio, Picture, Video
from lightning_modules.base import Table
from pipelines.callbacks import Findings
from pipelines.exhibits import exhibit, strip

SOUND = Audio(np.stack([0.01 * np.sin(np.arange(800)), 0.5 * np.cos(np.arange(800))]).astype(np.float32), 8000)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def test_a_sound_is_played_at_its_own_level_and_in_all_its_channels():
    samples, rate = soundfile.read(exhibit(SOUND)._path)
    assert rate == 8000
    assert np.abs(samples.T - SOUND.samples).max() < 2 / 2**15


def test_a_picture_keeps_its_pixels_and_a_film_shows_its_frames_side_by_side():
    assert np.array_equal(np.asarray(Image.open(exhibit(Picture(PIXELS))._path)), PIXELS)
    frames = np.stack([np.full((4, 3, 3), value, np.uint8) for value in range(31)])
    assert strip(frames).shape == (4, 48, 3)
    assert strip(frames)[0, ::3, 0].tolist() == list(range(0, 31, 2))
    assert isinstance(exhibit(Video(frames, 8.0)), wandb.Image)


def test_what_is_no_medium_stays_as_it_is():
    assert [exhibit(cell) for cell in ("a", 1.5, None, True)] == ["a", 1.5, None, True]


class Recording(WandbLogger):
    def __init__(self):
        self.tables = {}

    def log_table(self, key, columns, data):
        self.tables[key] = wandb.Table(columns=columns, data=data)


def test_a_table_of_media_goes_to_wandb_alone(tmp_path):
    logger = Recording()
    trainer = SimpleNamespace(sanity_checking=False, is_global_zero=True, loggers=[logger])
    rows = [("1_1", SOUND, None), ("2_1", None, Picture(PIXELS))]
    tables = {"plain": Table(("id",), [("1_1",)]), "shown": Table(("id", "audio1", "img1"), rows, media=True)}
    Findings(tmp_path).on_validation_end(trainer, SimpleNamespace(tables=tables, kept_in=None))
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["plain.csv"]
    with (tmp_path / "tables/plain.csv").open() as file:
        assert list(csv.reader(file)) == [["id"], ["1_1"]]
    assert set(logger.tables) == {"plain", "shown"}
    assert [[type(cell).__name__ for cell in row] for row in logger.tables["shown"].data] == [
        ["str", "Audio", "NoneType"], ["str", "NoneType", "Image"]]
