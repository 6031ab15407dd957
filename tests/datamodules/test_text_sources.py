import pytest

from datamodules.rows import DataError
from datamodules.sources import Splits, expand, folder_splits, standard_library


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
    return folder


def names(files):
    return [path.name for path in files]


def test_a_folder_is_sorted_into_splits_by_name(tmp_path):
    fill(tmp_path, "train.txt", "train.2.jsonl.gz", "valid.txt", "test.parquet", "README.md", "MANIFEST.csv", "sub/train.txt")
    splits = folder_splits(str(tmp_path))
    assert names(splits.train) == ["train.2.jsonl.gz", "train.txt"]
    assert names(splits.valid) == ["valid.txt"]
    assert names(splits.test) == ["test.parquet"]


@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev"])
def test_validation_files_go_by_their_usual_names(tmp_path, name):
    assert names(folder_splits(str(fill(tmp_path, "train.txt", f"{name}.txt"))).valid) == [f"{name}.txt"]


def test_a_folder_without_split_names_or_a_single_file_is_all_training(tmp_path):
    fill(tmp_path, "b.txt", "a.jsonl")
    assert names(folder_splits(str(tmp_path)).train) == ["a.jsonl", "b.txt"]
    assert names(folder_splits(str(tmp_path / "b.txt")).train) == ["b.txt"]


def test_a_relative_folder_is_taken_from_the_current_one_and_globs_go_into_sub_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path, "x/a.txt", "x/y/b.txt", "x/c.md"))
    assert expand(["x/**/*.txt", "x/a.txt"], "train") == (tmp_path / "x/a.txt", tmp_path / "x/y/b.txt")
    assert folder_splits("x").train == (tmp_path / "x/a.txt",)


@pytest.mark.parametrize(("files", "root", "said"), [
    ((), "none", "none: no such folder; data.root is a folder with train.* and valid.* files"),
    (("a.csv",), ".", "no text in this folder; expected files such as train.txt"),
    (("valid.txt",), ".", "valid.txt but no train.* file; name the training files with data.train"),
])
def test_a_folder_that_cannot_be_used_says_what_is_expected(tmp_path, monkeypatch, files, root, said):
    monkeypatch.chdir(fill(tmp_path, *files))
    with pytest.raises(DataError) as error:
        folder_splits(root)
    assert said in str(error.value)


def test_a_pattern_without_a_match_names_its_key(tmp_path):
    with pytest.raises(DataError, match=r"no such file; data\.valid takes file names or globs"):
        expand([str(tmp_path / "*.txt")], "valid")


def test_a_file_cannot_be_trained_on_and_held_out(tmp_path):
    path = fill(tmp_path, "a.txt") / "a.txt"
    with pytest.raises(DataError, match="is both a training and a held-out file"):
        Splits((path,), (path,))


def test_the_standard_library_is_that_of_this_python_without_its_tests():
    import dataclasses
    import json.decoder

    root, files = standard_library()
    relative = {path.relative_to(root).as_posix() for path in files}
    assert {"dataclasses.py", "json/decoder.py"} <= relative
    assert {str(root / "dataclasses.py"), str(root / "json/decoder.py")} == {dataclasses.__file__, json.decoder.__file__}
    assert not any("site-packages" in name or name.startswith("test/") for name in relative)
    assert len(relative) == len(files) > 300
