"""Pictures of every kind of file in every kind of data: what is read, and what is refused with its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchslim.errors import RequestError, TorchslimWarning
from torchslim.train import Data, load_data
from train.datasets.made_files import COCO, write_coco, write_csv, write_masks, write_yolo

Made = tuple[str, Path]


def masks(root: Path) -> Made:
    return f"masks:{write_masks(root, 'ab')}", root / "images" / "a.jpg"


def coco(root: Path) -> Made:
    return write_coco(root, COCO), root / "images" / "a.png"


def yolo(root: Path) -> Made:
    return write_yolo(root, "0 0.5 0.5 0.5 0.5"), root / "images" / "val" / "a.png"


def csv(root: Path) -> Made:
    rows = (f"{number}.png,{number % 2}" for number in range(4))
    return write_csv(root, "file,label", *rows), root / "pictures" / "1.png"


KINDS = [masks, coco, yolo, csv]


@pytest.mark.parametrize("kind", KINDS)
def test_broken_ones_are_found_at_once(kind: Callable[[Path], Made], tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    spec, path = kind(tmp_path)
    whole = path.read_bytes()
    for content, words in ((b"", "an empty file"), (b"text", "of no kind that Pillow can read"),
                           (whole[:-30], "OSError"), (None, "no file")):
        path.unlink() if content is None else path.write_bytes(content)
        if content is None and kind in (masks, yolo):
            continue  # without the picture it is a mask too many, or one picture less
        with pytest.raises(RequestError, match=rf"{path.name}: not a picture that can be read \({words}"):
            load_data(spec, size=16)
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(RequestError, match=r"can't be read: .*DecompressionBombError"):
        load_data(spec, size=16)


@pytest.mark.parametrize("kind", KINDS)
def test_deep_grey_and_animated_ones_are_read(kind: Callable[[Path], Made], tmp_path: Path) -> None:
    spec, path = kind(tmp_path)
    size = Image.open(path).size
    deep = Image.fromarray(np.full(size[::-1], 200 << 8, np.uint16))
    frames = [Image.new("P", size, number) for number in range(2)]
    for picture, options in ((deep, {"format": "PNG"}), (Image.new("LA", size, (200, 255)), {"format": "PNG"}),
                             (Image.new("CMYK", size), {"format": "TIFF"}),
                             (frames[0], {"format": "GIF", "save_all": True, "append_images": frames[1:]})):
        picture.save(path, **options)
        for channels in (1, 3):
            data = load_data(spec, size=16, channels=channels, held_out=0.5)
            shapes = {part[index][0].shape for part in (data.train, data.test) for index in range(len(part))}  # type: ignore[arg-type]
            assert shapes == {(channels, 16, 16)} == {data.shape}
    with pytest.raises(RequestError, match=r"no pictures of 4 channels, 1 \(grey\) or 3"):
        load_data(spec, channels=4)


# --- left out up to a share -------------------------------------------------------------------------------------------

def folder(root: Path) -> Made:
    for number in range(20):
        path = root / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(path)
    return f"folder:{root}", root / "b" / "7.bmp"


def table(root: Path) -> Made:
    """Of Hugging Face; to be made again when a file has changed, as it holds what is in them."""
    datasets = pytest.importorskip("datasets")
    spec, path = (f"hf:{root}/saved", root / "pictures" / "b" / "7.bmp")
    if not path.parent.exists():
        folder(root / "pictures")
    files = [root / "pictures" / "ab"[number % 2] / f"{number}.bmp" for number in range(20)]
    images = [{"bytes": file.read_bytes(), "path": None} if file.is_file() else None for file in files]
    made = datasets.Dataset.from_dict(
        {"image": images, "label": [file.parent.name for file in files]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}))
    shutil.rmtree(root / "saved", ignore_errors=True)
    made.save_to_disk(str(root / "saved"))
    return spec, path


def many_masks(root: Path) -> Made:
    return f"masks:{write_masks(root, 'abcdefghij')}", root / "images" / "c.jpg"


def masks_themselves(root: Path) -> Made:
    spec, _ = many_masks(root)
    return spec, root / "masks" / "c.png"


def many_yolo(root: Path) -> Made:
    spec = write_yolo(root, "0 0.5 0.5 0.5 0.5", parts=("train", "val"))
    for number in range(8):
        Image.new("RGB", (40, 20)).save(root / "images" / "train" / f"{number}.png")
    return spec, root / "images" / "train" / "3.png"


SEVERAL = [folder, table, many_masks, masks_themselves, many_yolo, coco, csv]
LABELLED = (coco, csv)  # of these, a picture is the only one of its class


def names(data: Data) -> set[str]:
    """The files that are read, by name; rows for tables of Hugging Face."""
    return {str(getattr(place, "name", place[1] if isinstance(place, tuple) else place))
            for part in (data.train, data.test) for place, _ in part.samples}  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [kind for kind in SEVERAL if kind not in LABELLED])
@pytest.mark.parametrize("content", ["empty", "text", "cut short", "missing", "bomb"])
def test_they_are_left_out_up_to_a_share(kind: Callable[[Path], Made], content: str, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    spec, path = kind(tmp_path)
    before = load_data(spec, size=16)
    count = len(before.train) + len(before.test)  # type: ignore[arg-type]
    whole = path.read_bytes()
    if content == "missing":
        path.unlink()
        if kind in (folder, many_yolo):  # where a picture that is not there is none
            path.symlink_to("nowhere")
    elif content == "bomb":
        picture = Image.new("RGB", (60, 60))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        picture.save(path, "PNG")
    else:
        path.write_bytes({"empty": b"", "text": b"404", "cut short": whole[:len(whole) * 2 // 3]}[content])
    if kind is table:
        kind(tmp_path)
    with pytest.raises(RequestError, match=rf"^{spec}: 1 of {count} pictures \([\d.]+%\) can't be read, more than "
                                           rf"skip_broken=0.001 allows: (\S*|row \d+) \(.*\); replace them"):
        load_data(spec, size=16, skip_broken=0.001)
    with pytest.warns(TorchslimWarning, match=rf"^{spec}: 1 of {count} pictures .* left out, as they can't be read: "):
        after = load_data(spec, size=16, skip_broken=1 / count)
    assert len(after.train) + len(after.test) == count - 1  # type: ignore[arg-type]
    for part, all_of_it in ((after.train, before.train), (after.test, before.test)):
        kept, of_all = (list(map(str, each.samples)) for each in (part, all_of_it))  # type: ignore[attr-defined]
        assert [text for text in of_all if text in kept] == kept
        assert all(part[index] is not None for index in range(len(part)))  # type: ignore[arg-type]


def test_what_shows_only_when_a_picture_is_read_is_left_out_too(tmp_path: Path) -> None:
    spec, path = folder(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])  # BMP says nothing of it in its header
    load_data(spec, size=16)
    with pytest.warns(TorchslimWarning, match=r"1 of 20 pictures \(5%\) left out, as they can't be read: \S*7\.bmp \("):
        data = load_data(spec, size=16, skip_broken=0.05)
    assert "7.bmp" not in names(data)


@pytest.mark.parametrize(("lost", "words"), [
    ([f"b/{number}.bmp" for number in range(1, 20, 2)], r"no picture to train on is left of b: \S*b/\S*bmp \(an empty"),
    (["train/a/0.bmp", "train/a/2.bmp"], "no picture to train on is left of a: .*, or take the class away"),
    ([f"val/{name}/{number}.bmp" for name in "ab" for number in range(4) if number % 2 == "ab".index(name)],
     "all 4 pictures to test on can't be read: "),
])
def test_nothing_left_of_a_class_or_a_part(lost: list[str], words: str, tmp_path: Path) -> None:
    for number in range(20 if lost[0][0] == "b" else 4):
        for part in ([""] if lost[0][0] == "b" else ["train", "val"]):
            path = tmp_path / part / "ab"[number % 2] / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9)).save(path)
    for name in lost:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(RequestError, match=words) as caught:
        load_data(f"folder:{tmp_path}", size=16, skip_broken=0.9)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", LABELLED)
def test_the_only_one_with_a_label(kind: Callable[[Path], Made], tmp_path: Path) -> None:
    """Boxes and rows of a table are labels, too."""
    if kind is coco:
        spec, path, name = write_coco(tmp_path, COCO), tmp_path / "images" / "a.png", "cat, dog"
        spec = f"{spec},{tmp_path}/boxes.json"
    else:
        rows = [f"{number}.png,{'rare' if number == 1 else number % 2}" for number in range(4)]
        spec, path, name = write_csv(tmp_path, "file,label", *rows), tmp_path / "pictures" / "1.png", "rare"
    path.write_bytes(b"")
    with pytest.raises(RequestError, match=rf"no picture to train on is left of {name}: \S*{path.name} \(an empty"):
        load_data(spec, size=16, skip_broken=0.9)


def test_which_are_held_out_does_not_depend_on_them(tmp_path: Path) -> None:
    spec, path = folder(tmp_path)
    held_out = {sample[0] for sample in load_data(spec, size=16).test.samples}  # type: ignore[attr-defined]
    path.write_bytes(b"")
    with pytest.warns(TorchslimWarning, match="left out"):
        data = load_data(spec, size=16, skip_broken=0.5)
    assert {sample[0] for sample in data.test.samples} == held_out - {path}  # type: ignore[attr-defined]


def test_shares_that_are_none_and_data_of_your_own(tmp_path: Path) -> None:
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(RequestError, match=rf"skip_broken={share} found, a share from 0 to below 1 wanted"):
            load_data("digits", skip_broken=share)
    (tmp_path / "mine.py").write_text("def data(): return [], []")
    with pytest.raises(RequestError, match=r"skip_broken=0\.1 is for files that torchslim reads"):
        load_data(f"{tmp_path}/mine.py:data", skip_broken=0.1)
