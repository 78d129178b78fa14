"""Cut a YOLO by half, train it with its own trainer, reload and export it: nothing undoes the cut.

Pictures are drawn here, eight for training and eight to test on: rectangles in three colours. With a dataset of yours,
a pretrained `yolo11n.pt`, 640 pixels and some dozen epochs the same lines do the real thing.

    pip install 'torchslim[ultralytics,onnx]'
    python examples/ultralytics_yolo.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from ultralytics import YOLO

from torchslim.integrations import ultralytics as slimming

SIDE = 96
COLOURS = {"red": (255, 30, 30), "green": (30, 255, 30), "blue": (30, 30, 255)}


def drawn(folder: Path, pictures: int = 8) -> Path:
    """A dataset in YOLO's layout; its description."""
    numbers = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(pictures):
            picture = Image.new("RGB", (SIDE, SIDE), (40, 40, 40))
            lines = []
            for index in numbers.permutation(len(COLOURS)):
                (left, top), (width, height) = numbers.integers(4, SIDE - 36, 2), numbers.integers(16, 32, 2)
                box = (left, top, left + width, top + height)
                ImageDraw.Draw(picture).rectangle([int(side) for side in box], list(COLOURS.values())[index])
                centre = (left + width / 2, top + height / 2, width, height)
                lines.append(" ".join(map(str, (index, *(float(value) / SIDE for value in centre)))))
            picture.save(folder / "images" / split / f"{number}.png")
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines))
    description = folder / "data.yaml"
    names = ", ".join(f"{index}: {name}" for index, name in enumerate(COLOURS))
    description.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{{names}}}\n")
    return description


def parameters(yolo: YOLO) -> int:
    """Number of parameters of its network."""
    return sum(parameter.numel() for parameter in yolo.model.parameters())


def main(folder: Path) -> None:
    """The whole way, in the given folder."""
    data = drawn(folder / "data")
    options = {"imgsz": SIDE, "device": "cpu", "project": str(folder / "runs"), "verbose": False}
    torch.manual_seed(0)

    yolo = YOLO("yolo11n.yaml")
    slim = slimming.prune(yolo, imgsz=SIDE, macs=0.5)
    [budget] = slim.plan.budgets
    print(f"cut: {budget.share:.1%} of the multiply-adds, {parameters(slim) / parameters(yolo):.1%} of the parameters")

    slim.train(data=str(data), epochs=2, batch=4, workers=0, plots=False, **options)
    trained = parameters(slim)  # three classes in place of eighty
    best = slim.trainer.best
    print("trained:", f"{trained:,} parameters")
    print("validated:", sorted(slim.val(data=str(data), workers=0, plots=False, **options).results_dict))

    plain = YOLO(best)  # needs no torchslim
    picture = np.asarray(Image.open(folder / "data" / "images" / "val" / "0.png"))[..., ::-1]
    print("reloaded:", f"{parameters(plain):,} parameters,", len(plain.predict(picture, **options)), "answer")

    again = slimming.load(best)
    again.train(data=str(data), epochs=1, batch=4, workers=0, plots=False, **options)
    print("trained again:", f"{parameters(again):,} parameters")

    exported = again.export(format="onnx", imgsz=SIDE, device="cpu", verbose=False)
    answer, = YOLO(exported, task="detect").predict(picture, **options)
    print("exported:", Path(exported).name, answer.boxes.shape[1], "numbers a box")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
