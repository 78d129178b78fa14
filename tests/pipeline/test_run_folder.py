"""The run's folder: whose run it holds, who works in it, and that files are whole or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torchslim.cli.options import duration
from torchslim.errors import CheckpointError, RequestError
from torchslim.pipeline.run_folder import RunFolder
from torchslim.pipeline.settings import Settings
from torchslim.utils.files import write_atomically, write_text


def settings(out: Path, **changes: object) -> Settings:
    return Settings(**{"model": "torchvision:resnet18", "data": "digits", "macs": 0.4, "out": out, **changes})


def begun(out: Path, **changes: object) -> RunFolder:
    """A folder in which the first phase is done."""
    folder = RunFolder(out)
    folder.open(settings(out, **changes))
    with folder.locked():
        folder.begin(2)
        folder.claim(["baseline.safetensors"])
        folder.finish("baseline", {"accuracy": 0.5})
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its text, and every folder."""
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "folder"
            for path in folder.rglob("*")}


# --- settings ---------------------------------------------------------------------------------------------------------

def test_the_command_asks_for_the_same(tmp_path: Path) -> None:
    assert settings(Path("runs/a")).command() == (
        "torchslim slim torchvision:resnet18 --data digits --macs 0.4 --out runs/a")
    changed = settings(Path("my runs"), params=1000, seed=3, export=False, importance="l2", sparsity=0.01)
    assert changed.command() == ("torchslim slim torchvision:resnet18 --data digits --macs 0.4 --params 1000 --seed 3 "
                                 "--sparsity 0.01 --importance l2 --no-export --out 'my runs'")
    for words, latency in (("0.5", 0.5), ("3000000ns", 3_000_000)):
        timed = settings(Path("runs/a"), macs=None, latency=latency, backend="openvino").command()
        assert timed == ("torchslim slim torchvision:resnet18 --data digits "
                         f"--latency {words} --backend openvino --out runs/a")
        assert duration("--latency", words) == latency


@pytest.mark.parametrize(("changes", "words"), [
    ({"macs": None}, "no budget; give --macs"), ({"batch_size": 0}, "--batch-size 0: wanted 1 or more"),
    ({"lr": -1.0}, "--lr -1.0: wanted"), ({"finetune_epochs": -1}, "--finetune-epochs -1: wanted"),
    ({"threads": 0}, "--threads 0: wanted"),
    ({"round_to": 0}, "--round-to 0: wanted"), ({"min_kept": 1.5}, "--min-kept 1.5: wanted"),
    ({"sparsity": -0.1}, "--sparsity -0.1: wanted"),
])
def test_settings_that_make_no_sense(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        settings(tmp_path, **changes)


# --- whose run it is --------------------------------------------------------------------------------------------------

def test_a_folder_remembers(tmp_path: Path) -> None:
    begun(tmp_path)
    again = RunFolder(tmp_path)
    again.open(settings(tmp_path))
    assert again.found == {"baseline": {"accuracy": 0.5}}
    assert again.threads == 2


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(RequestError) as caught:
        RunFolder(tmp_path).open(settings(tmp_path, macs=0.5, seed=7, skip_broken=0.02))
    text = str(caught.value)
    assert "--macs 0.4 (now 0.5), --seed 0 (now 7), --skip-broken 0.0 (now 0.02)" in text
    assert "--out" in text
    assert "--restart" in text
    assert "\n" not in text
    with pytest.raises(RequestError, match=r"--threads 2 \(now 3\)"):
        RunFolder(tmp_path).open(settings(tmp_path, threads=3))


def test_settings_without_part_in_the_weights_may_change(tmp_path: Path) -> None:
    begun(tmp_path)
    folder = RunFolder(tmp_path)
    folder.open(settings(tmp_path, export=False, workers=2, threads=2))
    assert folder.threads == 2  # the run was found again, and goes on


def test_a_run_that_never_got_anywhere_is_in_nobodys_way(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(settings(tmp_path))
    with folder.locked():
        folder.begin(2)
    RunFolder(tmp_path).open(settings(tmp_path, macs=0.5))
    (tmp_path / "work" / "baseline.checkpoint").write_bytes(b"some epochs of work")
    with pytest.raises(RequestError, match="holds a run"):
        RunFolder(tmp_path).open(settings(tmp_path, macs=0.5))


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("name", ["report.html", "notes.txt", ".hidden", "work/notes.txt", "work/state.json", "work"])
def test_a_folder_that_holds_something_and_no_run_is_refused(tmp_path: Path, name: str, restart: bool) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(RequestError, match=f"{name}.*choose another folder with --out"):
        RunFolder(tmp_path).open(settings(tmp_path), restart)
    assert tree(tmp_path) == before


def test_a_folder_that_a_process_left_before_its_run_began_may_be_used(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a").locked():
        pass
    (tmp_path / "a" / "work" / ".state.json.tmp").write_text("half")
    (tmp_path / "b").mkdir()
    before = tree(tmp_path)
    for name in ("a", "b"):
        RunFolder(tmp_path / name).open(settings(tmp_path / name))
    assert tree(tmp_path) == before


def test_files_of_someone_elses_beside_a_run_stay(tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / "baseline.safetensors").write_text("the run's")
    for name in ("notes.txt", "slim.safetensors", "work/notes.txt", "work/cut.safetensors", ".plan.json.tmp"):
        (tmp_path / name).write_text("mine")
    mine = {name: text for name, text in tree(tmp_path).items() if text == "mine"}
    folder = RunFolder(tmp_path)
    folder.open(settings(tmp_path, macs=0.5), restart=True)
    for name in ("slim.safetensors", "cut.safetensors"):
        with pytest.raises(RequestError, match=f"{name}: is no file of the run .* move it, or choose another"):
            folder.check_writable([name])
        with pytest.raises(RequestError, match="is no file of the run"):
            folder.claim([name])
    with folder.locked():
        folder.clear()
        folder.begin(2)
        folder.delete_intermediate()
    left = tree(tmp_path)
    assert left.pop("work/lock") == str(os.getpid())
    assert json.loads(left.pop("work/state.json"))["settings"]["macs"] == 0.5
    assert left == {**mine, "work": "folder"}


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "slim.onnx").write_text("mine")
    before = tree(tmp_path)
    for name, words in (("file", "is a file"), ("file/run", "file is a file"), ("file/a/b", "file is a file"),
                        ("lost", "is a link to what is no folder"), ("lost/run", "lost is a link to what is no folder"),
                        ("link", "holds slim.onnx and no run"), ("n" * 300, "File name too long")):
        with pytest.raises(RequestError, match=words) as caught:
            RunFolder(tmp_path / name).open(settings(tmp_path / name))
        assert "--out" in str(caught.value)
    with pytest.raises(RequestError, match="can't be used"), RunFolder(tmp_path / "file" / "run").locked():
        pass
    assert tree(tmp_path) == before


def test_a_folder_that_cannot_be_made_leaves_none_of_those_above_it(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RequestError, match="Permission denied"), RunFolder(tmp_path / "a" / "b").locked():
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RequestError, match=f"no permission to write in {tmp_path}"):
        RunFolder(tmp_path / "a" / "b").check_writable([])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 3}', '{"format": 3, "settings": 3, "threads": 1}'])
def test_a_state_that_cannot_be_read(tmp_path: Path, damage: str) -> None:
    begun(tmp_path)
    (tmp_path / "work" / "state.json").write_text(damage)
    with pytest.raises(CheckpointError, match="--restart"):
        RunFolder(tmp_path).open(settings(tmp_path))
    RunFolder(tmp_path).open(settings(tmp_path), restart=True)


def test_a_state_of_a_newer_format(tmp_path: Path) -> None:
    begun(tmp_path)
    path = tmp_path / "work" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="format 99 found, 3 wanted"):
        RunFolder(tmp_path).open(settings(tmp_path))


def test_leftovers_of_a_killed_process_are_swept_out(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.claim(["slim.safetensors", "slim.onnx", "baseline.checkpoint"])
    (tmp_path / ".slim.safetensors.77.ab.tmp").write_text("half")
    (tmp_path / "work" / ".baseline.checkpoint.tmp").write_text("half")
    (tmp_path / ".slim.onnx-x7").mkdir()
    (tmp_path / ".slim.onnx-x7" / "slim.onnx").write_text("half")
    (tmp_path / ".hidden").write_text("mine")
    with folder.locked():
        folder.begin(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "work"]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["lock", "state.json"]


# --- who works in it --------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from torchslim.pipeline.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(RequestError, match=f"process {holder.pid} works here"), RunFolder(tmp_path).locked():
            pass
        holder.kill()
    with RunFolder(tmp_path).locked():
        assert (tmp_path / "work" / "lock").read_text() == str(os.getpid())
    with RunFolder(tmp_path).locked():
        pass


# --- files are whole or absent ----------------------------------------------------------------------------------------

def half(draft: Path) -> None:
    draft.write_text("half of ")
    raise OSError("the disk is full")


def killed(draft: Path) -> None:
    draft.write_text("half of ")
    raise KeyboardInterrupt


@pytest.mark.parametrize(("writer", "error"), [(half, CheckpointError), (killed, KeyboardInterrupt)])
def test_a_file_that_fails_halfway_leaves_the_old_one(
        tmp_path: Path, writer: Callable[[Path], object], error: type[BaseException]) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")
    with pytest.raises(error):
        write_atomically(path, writer)
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_state_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys, torchslim.pipeline.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=600, check=False).returncode == 0
