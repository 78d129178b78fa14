"""Folders of pictures: which files are read, of which class and part; what is left out with a word; what is refused."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchslim.errors import RequestError
from torchslim.train import load_data
from torchslim.train.datasets.folder import find_pictures


def make(root: Path, *names: str) -> Path:
    """Files by their names below the root: pictures, or nothing in them where the name is of no picture."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg"):
            Image.new("RGB", (9, 8), (0, 0, 255)).save(path, "PNG")
        else:
            path.touch()
    return root


def read(root: Path) -> tuple[list[str], list[str], list[str]]:
    """The names of the pictures to train on and to test on, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, files, held_out = find_pictures("folder:x", root)
    told = [str(warning.message).removeprefix("folder:x: ") for warning in caught]
    return *(sorted(str(path.relative_to(root)) for path, _ in part or ()) for part in (files, held_out)), told


def refused(root: Path, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        load_data(f"folder:{root}", size=16)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_what_is_read(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "far.png", "deep/farther.png")
    root = make(tmp_path / "x", "cat/1.png", "cat/2.PNG", "cat/größe ☃.jpg", "cat/a/b/c.png", "dog/1.jpg",
                "cat/.hidden.png", "cat/._1.png", "cat/.DS_Store", "cat/Thumbs.db", "cat/desktop.ini",
                "cat/.ipynb_checkpoints/1-checkpoint.png", ".git/config", "__MACOSX/cat/1.png",
                "cat/notes.txt", "dog/photo.heic", "loose.png", "readme.md")
    (root / "dog" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "dog" / "link.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (root / "dog" / "loop").symlink_to(root / "dog", target_is_directory=True)
    (root / "cat" / "all").symlink_to(root, target_is_directory=True)
    (root / "cat" / "above").symlink_to(root.parent.parent, target_is_directory=True)
    (root / "dog" / "self").symlink_to(root / "dog" / "self")
    os.mkfifo(root / "dog" / "pipe.png")
    files, held_out, told = read(root)
    assert files == ["cat/1.png", "cat/2.PNG", "cat/a/b/c.png", "cat/größe ☃.jpg", "dog/1.jpg", "dog/link.png",
                     "dog/linked/deep/farther.png", "dog/linked/far.png"]
    assert held_out == []
    assert sorted(told) == [
        "1 not read, as they are in no class's folder: loose.png",
        "1 not read, as they are pipes or devices: dog/pipe.png",
        "3 not read, as their names do not end like a picture's: cat/notes.txt, dog/photo.heic, dog/self",
        "3 not read, as they are links to folders around them: cat/above, cat/all, dog/loop"]


def test_names_in_no_encoding(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    os.rename(os.fsencode(tmp_path / "dog"), os.fsencode(tmp_path) + b"/d\xf6g")
    os.rename(os.fsencode(tmp_path / "cat/1.png"), os.fsencode(tmp_path) + b"/cat/\xe9.png")
    data = load_data(f"folder:{tmp_path}", size=16)
    assert data.classes == ("cat", "d\\udcf6g")
    assert {data.train[i][0].shape for i in range(len(data.train))} == {(3, 16, 16)}
    (tmp_path / "cat" / os.fsdecode(b"\xe9.png")).write_text("none")
    refused(tmp_path, r"cat/\\udce9\.png: not a picture")
    (tmp_path / "cat" / os.fsdecode(b"\xe9.png")).rename(tmp_path / "cat" / "two\nlines.png")
    refused(tmp_path, r"cat/two\\nlines\.png: not a picture")


@pytest.mark.parametrize(("train", "held_out"), [
    ("train", "val"), ("train", "valid"), ("train", "validation"), ("train", "test"), ("Train", "Test"),
    ("training", "testing"), ("TRAIN", "VAL"), ("train", "dev"), ("train", "")])
def test_parts(train: str, held_out: str, tmp_path: Path) -> None:
    make(tmp_path, f"{train}/cat/1.png", f"{train}/dog/1.png", ".cache/1.png", "labels.csv")
    wanted = []
    if held_out:
        wanted = [f"{held_out}/cat/2.png", f"{held_out}/dog/2.png"]
        make(tmp_path, *wanted)
    assert read(tmp_path) == ([f"{train}/cat/1.png", f"{train}/dog/1.png"], wanted, [])


def test_validation_comes_before_test_and_others_are_named(tmp_path: Path) -> None:
    make(tmp_path, *(f"{part}/{name}/1.png" for part in ("train", "test", "val", "extra") for name in ("cat", "dog")),
         "over.png")
    files, held_out, told = read(tmp_path)
    assert (files[0], held_out) == ("train/cat/1.png", ["val/cat/1.png", "val/dog/1.png"])
    assert told == ["1 not read, as they are in no class's folder: over.png",
                    "1 not read, as they stand beside train: extra"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make(tmp_path, "bus/1.png", "car/1.png", "train/1.png")
    assert read(tmp_path) == (["bus/1.png", "car/1.png", "train/1.png"], [], [])


@pytest.mark.parametrize(("names", "words"), [
    (["1.png", "2.png"], "holds no folder and 2 pictures, at least 2 classes wanted"),
    (["val/cat/1.png", "test/cat/1.png"], "holds test, val, and nothing to train on; name that folder train"),
    (["train/cat/1.png", "training/cat/1.png"], "train(ing)? and train(ing)? are the same part of the data"),
    (["train/cat/1.png", "val/cat/1.png", "Valid/dog/1.png"], "(Valid and val|val and Valid) are the same part"),
    (["train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/owl/1.png"],
     r"different classes \(dog in train only; owl in val only\)"),
    (["train/cat/1.png", "train/dog/1.png", "val/1.png"], "val holds no folder and 1 pictures"),
    (["cat/1.png", "dog/.keep"], r"no pictures in \S*dog \(\.apng"),
    (["cat/1.png", "dog/1.heic", "dog/2.heic"], r"no pictures in \S*dog but 2 other files, such as \d\.heic"),
])
def test_folders_that_are_refused(names: list[str], words: str, tmp_path: Path) -> None:
    refused(make(tmp_path, *names), words)


def test_pictures_that_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)))
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    refused(root, r"cat/gone\.png: not a picture .*a link to \S*nowhere\.png, which is not there")
    for number in range(4):
        (root / "dog" / f"{number}.png").write_text("text")
    refused(root, r"^5 of 11 pictures can't be read: \S*gone\.png .*dog/0\.png \(.*dog/1\.png \(.*\), \.\.\.; repl")


@contextmanager
def without_rights() -> Iterator[Path]:
    """A folder of one's own; root, who may read everything, is somebody else meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            if os.geteuid() == 0:
                os.chown(folder, 65534, -1)
                os.seteuid(65534)
            yield Path(folder)
        finally:
            os.seteuid(os.getuid())
            for path in Path(folder).rglob("*"):
                path.chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights of POSIX")
def test_what_may_not_be_read() -> None:
    with without_rights() as root:
        make(root, "cat/1.png", "cat/2.png", "dog/1.png", "dog/in/2.png")
        (root / "cat" / "1.png").chmod(0)
        refused(root, r"cat/1\.png: not a picture .*no permission to read it")
        (root / "dog" / "in").chmod(0)
        refused(root, r"dog/in: a folder that can't be read \(Permission denied\)")


def test_grey_and_colour(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(2)))
    for channels, levels in ((3, [0, 0, 1]), (1, [29 / 255])):
        data = load_data(f"folder:{tmp_path}", size=16, channels=channels)
        picture = data.test[0][0]
        assert data.shape == picture.shape == data.train[0][0].shape == (channels, 16, 16)
        shown = picture[:, 0, 0].numpy() * data.std + data.mean
        np.testing.assert_allclose(shown, levels, atol=1e-6)
    assert load_data("digits", size=16, channels=1).test[0][0].shape == (1, 16, 16)
    with pytest.raises(RequestError, match=r"no pictures of 4 channels, 1 \(grey\) or 3 \(colour\) wanted"):
        load_data(f"folder:{tmp_path}", channels=4)


def test_strips_do_not_fill_the_memory(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number, size in enumerate(((300_000, 1), (1, 300_000), (1, 1))):
            Image.new("L", size, 100).save(tmp_path / name / f"{number}.png")
    data = load_data(f"folder:{tmp_path}", held_out=0.6)
    for part in (data.train, data.test):
        assert {part[i][0].shape for i in range(len(part))} == {(3, 224, 224)}
