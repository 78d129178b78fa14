"""What is said when a path, or nothing, stands where a model was wanted."""

from __future__ import annotations

from pathlib import Path

from torchslim.errors import RequestError
from torchslim.utils.importing import factories_in
from torchslim.utils.text import quoted

SAVED_SUFFIX = ".safetensors"
WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle", ".tar", ".th")
EXPORTED = (".onnx", ".pt2", ".xml", ".tflite", ".pte", ".h5", ".pb", ".engine")
FORMS = ("torchslim:NAME, torchvision:NAME, timm:NAME, ultralytics:NAME.yaml, package.module:factory, file.py:factory "
         f"or the path of a saved slim model (*{SAVED_SUFFIX})")


def how_to_load(path: str) -> str:
    """The specification of a network that takes its weights from a file."""
    return (f"name the architecture and append ?checkpoint={path}, such as "
            f"{quoted(f'torchvision:resnet18?checkpoint={path}')}")


def no_model(text: str) -> RequestError:
    """The error for a specification that names no model, by what lies at this path."""
    head = text.partition("?")[0]
    path, suffix = Path(head), Path(head).suffix.lower()
    place = quoted(head)
    if not head.strip(" :"):
        return RequestError(f"{quoted(text)}: names no model; give {FORMS}")
    if suffix == ".py" or head.endswith(".py:"):
        return _without_factory(head.rstrip(":"))
    if path.is_dir():
        return RequestError(f"{place}: names no model, it is a folder; give {FORMS}")
    if suffix in (*WEIGHTS, *EXPORTED) and not path.exists():
        return RequestError(f"{place}: names no model, and there is no such file; give {FORMS}")
    if suffix in WEIGHTS:
        return RequestError(f"{place}: names no model, weights alone do not tell their architecture; "
                            f"{how_to_load(head)}")
    if suffix in EXPORTED:
        return RequestError(f"{place}: names no model, it is a file for another runtime; give the PyTorch model that "
                            "it was made from (`torchslim bench` times .onnx files, too)")
    return RequestError(f"{place}: names no model; give {FORMS}")


def check_file(path: str) -> str:
    """The path, if it is that of a file.

    Raises:
        RequestError: it is a folder, or nothing is there.
    """
    if Path(path).is_dir():
        raise RequestError(f"{quoted(path)}: is a folder; give the path of a file")
    if not Path(path).is_file():
        raise RequestError(f"{quoted(path)}: no such file; give the path of an existing one")
    return path


def _without_factory(path: str) -> RequestError:
    try:
        check_file(path)
    except RequestError as error:
        return error
    found = factories_in(Path(path)) or ["FACTORY"]
    return RequestError(f"{quoted(path)}: names no model, only its file; name a function of it that makes one: "
                        f"{' or '.join(f'{path}:{name}' for name in found[:3])}")
