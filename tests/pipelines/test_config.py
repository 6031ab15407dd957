"""What a command line means: precedence, origins, numbers as people write them, files that are read back, warnings."""

import dataclasses
import shutil
import warnings

import pytest

from pipelines import catalog
from pipelines.catalog import choices_of, summary_of
from pipelines.config import ConfigWarning, compose, fingerprint, from_yaml, to_mapping, to_yaml
from pipelines.kinds import leaves
from pipelines.schema import COMPONENTS, SECTIONS

RUN = ["method=fira", "trainer.max_steps=8"]


def words_of(experiment):
    """The words that start an experiment: those that its summary asks for get a value."""
    asked = [word for word in summary_of("experiment", experiment).replace(";", ",").split(", ") if word.endswith("=FOLDER")]
    return [f"experiment={experiment}", *[word.replace("FOLDER", ".") for word in asked]]


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A copy of configs/ that a test may write to."""
    copy = tmp_path / "configs"
    shutil.copytree(catalog.ROOT, copy)
    monkeypatch.setattr(catalog, "ROOT", copy)
    return copy


@pytest.fixture
def warned():
    """Compose words and return what was warned of."""
    def compose_with(*words):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            compose([*words])
        return [str(w.message) for w in seen if isinstance(w.message, ConfigWarning)]
    return compose_with


def test_five_levels_set_a_value_each_over_the_ones_below(configs, tmp_path):
    (configs / "optim" / "mine.yaml").write_text("_target_: lightning_modules.optim.fira.Fira\ngap: 2\nrank: 2\nalpha: 2\nbeta2: 0.2\n")
    (configs / "experiment" / "mine.yaml").write_text("defaults: {method: fira, optim: mine}\noptim: {gap: 3, rank: 3, alpha: 3}\n")
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: {experiment: mine}\noptim: {gap: 4, rank: 4}\n")
    config = compose([f"config={file}", "optim.gap=5", "trainer.max_steps=8"])
    optim = config.optim.config
    assert (optim.gap, optim.rank, optim.alpha, optim.beta2, optim.beta1) == (5, 4, 3, 0.2, 0.9)
    assert [config.origins[f"optim.{key}"] for key in ("gap", "rank", "alpha", "beta2", "beta1")] == [
        "command line", f"config={file}", "experiment mine", "configs/optim/mine.yaml", "default"]


def test_choices_follow_the_same_order_as_values(configs, tmp_path):
    for name in ("one", "two", "three", "four"):
        (configs / "trainer" / f"{name}.yaml").write_text(f"# {name}\nmax_steps: 8\n")
    method = configs / "method" / "fira.yaml"
    method.write_text(method.read_text().replace("{optim: fira}", "{optim: fira, trainer: one}"))
    (configs / "experiment" / "mine.yaml").write_text("defaults: {method: fira, trainer: two}\n")
    (tmp_path / "mine.yaml").write_text("defaults: {trainer: three}\n")
    file = f"config={tmp_path / 'mine.yaml'}"
    lines = [(["method=fira"], "one"), (["experiment=mine"], "two"), (["experiment=mine", file], "three"),
             (["experiment=mine", file, "trainer=four"], "four")]
    assert [compose(words).choices["trainer"] for words, _ in lines] == [expected for _, expected in lines]


def test_the_source_of_data_has_a_short_word():
    assert compose(["method=av_odyssey", "data=synthetic"]).data == compose(["method=av_odyssey", "data.source=synthetic"]).data
    assert compose(["method=av_odyssey", "data=synthetic"]).data.config.source == "synthetic"
    assert compose(["method=freekd", "data=Cora"]).data.config.name == "Cora"


def test_every_value_names_where_it_comes_from():
    config = compose(["experiment=fira_debug", "optim.lr=3e-3", "optim.schedule={warmup: 2}"])
    shown = {f"{section}.{key}" for section, schema in SECTIONS.items() for key in leaves(schema)}
    shown |= {f"{section}.{key}" for section in COMPONENTS for key in leaves(type(getattr(config, section).config))}
    assert set(config.origins) == shown | {f"{section}._target_" for section in COMPONENTS}
    assert {key for key, origin in config.origins.items() if origin == "command line"} == {"optim.lr", "optim.schedule.warmup"}
    assert config.origins["module.size"] == "experiment fira_debug"
    assert config.origins["trainer.val_every_n_steps"] == "configs/trainer/debug.yaml"
    assert config.origins["module._target_"] == "configs/method/fira.yaml"
    assert config.origins["trainer.precision"] == "default"


@pytest.mark.parametrize(("word", "value"), [
    ("optim.lr=1e-3", 0.001), ("optim.lr=1E-3", 0.001), ("optim.lr=.5", 0.5), ("optim.lr=3", 3.0), ("optim.lr=+2e0", 2.0),
    ("optim.lr=1_000.5", 1000.5), ("optim.rank=1_000", 1000), ("optim.rank=007", 7), ("optim.rank=+7", 7),
    ("optim.limiter_gamma=off", None), ("optim.limiter_gamma=None", None), ("optim.limiter_gamma=none", None),
    ("optim.limiter_gamma=null", None), ("optim.limiter_gamma=~", None), ("trainer.max_epochs=None", None), ("trainer.profiler=off", None),
    ("optim.refresh_stagger=on", True), ("optim.refresh_stagger=yes", True), ("optim.refresh_stagger=True", True),
    ("optim.residual=off", False), ("optim.residual=no", False), ("optim.residual=0", False),
    ("run.name=007", "007"), ("run.name=1e3", "1e3"), ("run.name=true", "true"), ("run.name=off", "off"), ("run.name=None", None),
    ("run.name=2024-10-01", "2024-10-01"), ("run.name='null'", "null"), ("run.root=~", "~"),
    ("run.notes=a #1: [b] & *c", "a #1: [b] & *c"), ("run.notes='quoted'", "quoted"), ("run.notes=a\nb", "a\nb"), ("run.notes=''", ""),
    ("run.tags=[a, 12, off]", ["a", "12", "off"]), ("run.tags=[]", []), ("trainer.max_time=00:01:00:00", "00:01:00:00"),
], ids=lambda value: str(value).replace("\n", " "))
def test_words_are_read_as_people_write_them(word, value):
    key = word.partition("=")[0]
    section, name = key.split(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        found = getattr(compose([*RUN, word]), section)
    found = getattr(getattr(found, "config", found), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("experiment", choices_of("experiment"))
def test_every_experiment_is_listed_composes_and_sets_nothing_in_vain(experiment, warned):
    assert summary_of("experiment", experiment)
    assert compose(words_of(experiment)).choices["experiment"] == experiment
    assert warned(*words_of(experiment)) == []


@pytest.mark.parametrize("experiment", choices_of("experiment"))
def test_a_configuration_written_to_a_file_is_read_back_unchanged(experiment, tmp_path):
    notes = "null: 1e3 #x\n\t'\"ü {{}} 007\x01"
    odd = [f"run.notes={notes}", "run.name=1e3", "run.tags=[null-ish, '1.0', 'true', '~']", "trainer.gradient_clip_val=off"]
    config = compose([*words_of(experiment), *odd])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = from_yaml(path)
    choices = {group: choice for group, choice in config.choices.items() if group != "experiment"}
    assert again == dataclasses.replace(config, experiment=None, choices=choices, origins=again.origins)
    assert again.run.notes == notes
    assert {again.origins[f"{name}.{key}"] for name, schema in SECTIONS.items() for key in leaves(schema)} == {f"config={path}"}
    assert fingerprint(again) == fingerprint(config)
    changed = from_yaml(path, ["optim.lr=7"])
    assert changed.optim.config == dataclasses.replace(config.optim.config, lr=7.0)


def test_a_run_written_to_a_file_does_not_change_with_its_experiment(configs, tmp_path):
    experiment = configs / "experiment" / "mine.yaml"
    experiment.write_text("defaults: {method: fira}\noptim: {gap: 3}\ntrainer: {max_steps: 8}\n")
    before = compose(["experiment=mine"])
    (tmp_path / "config.yaml").write_text(to_yaml(before))
    experiment.write_text("defaults: {method: fira}\noptim: {gap: 4, rank: 2}\ntrainer: {max_steps: 9}\n")
    assert to_mapping(from_yaml(tmp_path / "config.yaml")) == to_mapping(before)
    experiment.unlink()
    assert to_mapping(from_yaml(tmp_path / "config.yaml")) == to_mapping(before)


def test_the_fingerprint_ignores_names_places_and_loggers(tmp_path):
    same = ["run.name=other", "run.root=elsewhere", "run.resume=auto", "run.tags=[a]", "run.notes=b", "logger=csv", "logger.project=p"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        assert {fingerprint(compose([*RUN, word])) for word in same} == {fingerprint(compose(RUN))}


def numbers():
    """Every key that holds a number and decides a run, with another number than its default."""
    config = compose(RUN)
    for section, values in to_mapping(config).items():
        if section == "cluster":
            continue
        schema = SECTIONS.get(section) or type(getattr(config, section).config)
        for key in leaves(schema):
            value = values
            for part in key.split("."):
                value = value[part]
            if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("devices", "num_nodes"):
                yield f"{section}.{key}={value + 1 if isinstance(value, int) or value >= 1 else value / 2 + 0.01}"


def test_the_fingerprint_changes_with_every_number():
    words = list(numbers())
    assert {"trainer.max_steps=9", "optim.rank=129", "run.seed=2"} <= {*words}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        prints = [fingerprint(compose(["method=fira", *(["trainer.max_steps=8"] * ("max_steps" not in word)), word])) for word in words]
    assert len({*prints, fingerprint(compose(RUN))}) == len(words) + 1


def test_the_fingerprint_is_the_same_wherever_a_run_is_launched():
    assert fingerprint(compose([*RUN, "cluster=slurm", "cluster.time=60", "cluster.requeues=2"])) == fingerprint(compose(RUN))


@pytest.mark.parametrize(("words", "said"), [
    (["optim=galore", "optim.limiter_gamma=1.2"], ["optim.limiter_gamma: no effect, because residual=false leaves the residual out"]),
    (["module.lora.alpha=3"], ["module.lora.alpha: no effect, because rank=0 means no LoRA"]),
    (["logger=csv", "logger.mode=offline"], ["logger.mode: no effect, because name=csv leaves W&B out"]),
    (["optim=adamw"], ["optim: the values of experiment fira_debug were set for optim=fira and are not used (rank, gap)"]),
    (["trainer=debug", "checkpoint.keep=2"], []),
    (["optim=fira", "optim.rank=8"], []),
])
def test_a_setting_without_effect_is_warned_of(words, said, warned):
    assert warned("experiment=fira_debug", *words) == said


def test_a_choice_that_a_file_takes_back_is_warned_of_with_the_words_that_keep_it(configs, warned):
    (configs / "experiment" / "mine.yaml").write_text("defaults: {method: fira}\ntrainer: {max_steps: 100, threads: 1}\n")
    assert warned("experiment=mine", "trainer=debug") == [
        "trainer=debug: experiment mine sets other values. Write trainer.max_steps=8 to have those of trainer=debug"]
    assert warned("experiment=mine", "trainer=debug", "trainer.max_steps=8") == []


def test_another_logger_than_that_of_a_full_file_is_taken(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(compose([*RUN, "logger=wandb"])))
    with pytest.warns(ConfigWarning, match="set for logger=wandb"):
        assert compose([f"config={path}", "logger=csv"]).logger.name == "csv"
