"""Tables: the task by the columns, targets by hand, parts, and lines that are refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from torchslim.errors import RequestError
from torchslim.train import Data, load_data
from train.datasets.made_files import write_csv


def targets(data: Data) -> list[Any]:
    """By the number of the picture, over both parts."""
    found = {}
    for part in (data.train, data.test):
        for (path, target) in part.samples:  # type: ignore[attr-defined]
            found[path.name] = target if isinstance(target, int) else target.tolist()
    return [found[name] for name in sorted(found)]


@pytest.mark.parametrize(("lines", "asked", "task", "classes", "wanted"), [
    (["file,label", "0.png,dog", "1.png,cat", "2.png,dog", "3.png,cat"], None,
     "classification", ("cat", "dog"), [1, 0, 1, 0]),
    (["file;label", "0.png;10", "1.png;9", "2.png;10", "3.png;9"], None, "classification", ("9", "10"), [1, 0, 1, 0]),
    (["file,age", "0.png,3", "1.png,4", "2.png,5", "3.png,6"], "regression",
     "regression", ("age",), [[3], [4], [5], [6]]),
    (["file,x,y", "0.png,0.5,2", "1.png,1e1,-3", "2.png,0,0", "3.png,1,1"], None,
     "regression", ("x", "y"), [[0.5, 2], [10, -3], [0, 0], [1, 1]]),
    (["file\tcat\tdog", "0.png\t0\t1", "1.png\t1\t1", "2.png\t0\t0", "3.png\t1\t0"], None,
     "multilabel", ("cat", "dog"), [[0, 1], [1, 1], [0, 0], [1, 0]]),
    (["file,cat,dog", "0.png,0,1", "1.png,1,1", "2.png,0,0", "3.png,1,0"], "regression",
     "regression", ("cat", "dog"), [[0, 1], [1, 1], [0, 0], [1, 0]]),
    (["\ufefffile, tags ", "0.png, sea | sun", '1.png, "sun"', "", "2.png,", "3.png,b|sea|b"], None,
     "multilabel", ("b", "sea", "sun"), [[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]]),
])
def test_the_columns_say_the_task(lines: list[str], asked: str | None, task: str, classes: tuple[str, ...],
                                  wanted: list[Any], tmp_path: Path) -> None:
    data = load_data(write_csv(tmp_path, *lines), size=8, held_out=0.5, task=asked)
    assert (data.task, data.classes, len(data.train), len(data.test)) == (task, classes, 2, 2)
    assert targets(data) == wanted
    assert data.train[0][0].shape == data.test[0][0].shape == (3, 8, 8)


def test_paths_from_the_table_and_parts(tmp_path: Path) -> None:
    write_csv(tmp_path, "file,Split,label", "pictures/0.png,train,a", "pictures/1.png,train,b", "pictures/2.png,val,b",
          "pictures/3.png,val,a", "gone.png,test,a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_data(f"csv:{tmp_path}/table.csv", size=8)
    assert (len(data.train), len(data.test), data.test[0][1], data.test[1][1]) == (2, 2, 1, 0)
    assert [str(warning.message).partition(": ")[2] for warning in caught] == [
        "1 rows not read, as their part is not train or val"]


HEAD = "file,label"


@pytest.mark.parametrize(("lines", "words"), [
    ([], "0 rows, wanted names of columns"),
    ([HEAD], "1 rows, wanted names of columns"),
    (["0.png,cat", "1.png,dog"], r"the first line is a picture \(0\.png\), wanted names of columns"),
    (["file", "0.png", "1.png"], "the columns are file, wanted the picture's path and at least one column to predict"),
    ([HEAD, "0.png,a", "1.png,b,c"], r"table\.csv, line 3: 3 cells, wanted 2 as in the first line"),
    ([HEAD, "0.png,a", ",b"], "line 3: no picture; the first column is its path"),
    ([HEAD, "0.png,a", "1.png,"], "line 3: no class in the column 'label'"),
    ([HEAD, "0.png,a", "1.png,a"], r"1 class found \(a\), at least 2"),
    ([HEAD, "0.png,a", "1.png,b"], "one picture in each class, so none can be held out"),
    ([HEAD, "0.png,a", "5.png,b", "1.png,a"], r"5\.png: not a picture that can be read \(no file\)"),
    (["file,a,b", "0.png,1.5,x"], "line 2: 'x' in the column 'b' is no number; wanted numbers in all of a, b"),
    (["file,a,b", "0.png,1.5,nan"], "line 2: 'nan' in the column 'b' is no number"),
    (["file,a,a", "0.png,1,2"], "two columns 'a'; rename one"),
    ([HEAD, '0.png,"a', "1.png,b"], "line 3: not a table"),
    (["file,split,label", "0.png,train,a", "1.png,vall,b"], "line 3: the part 'vall' is none; did you mean val"),
    (["file,split,label", "0.png,train,a", "1.png,train,b"], "the column split holds train only, wanted train and val"),
    (["file,split,label", "0.png,train,a", "1.png,val,b"], r"different classes \(a in train only; b in test only\)"),
])
def test_tables_that_are_refused(lines: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        load_data(write_csv(tmp_path, *lines), size=8)
    assert "\n" not in str(caught.value)


def test_files_and_tasks_that_are_refused(tmp_path: Path) -> None:
    for spec, words in ((f"csv:{tmp_path}/none.csv", r"there is no file \S*none\.csv"),
                        (f"csv:{tmp_path}/none.csv@{tmp_path}/nowhere", "nowhere is no folder; give csv:FILE@FOLDER"),
                        (f"csv:{tmp_path}", "there is no file|can't be read")):
        with pytest.raises(RequestError, match=words):
            load_data(spec)
    spec = write_csv(tmp_path, HEAD, "0.png,a", "1.png,b")
    with pytest.raises(RequestError, match="is data for classification or multilabel, task='regression' asked for"):
        load_data(spec, task="regression")
