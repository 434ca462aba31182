"""The snippets of docs/diffusers.md are run as they stand there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

from codec import console
from codec.cli import app
from tests.codec.conversion.original_checkpoints import SHAPES, original_tensors, write_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/diffusers.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def run_all(language: str) -> None:
    """Runs the commands of those blocks and expects success."""
    lines = [line for block in blocks(language) for line in block.splitlines()]
    assert lines
    for line in lines:
        with pytest.raises(SystemExit) as ended:
            console.run(app, shlex.split(line, comments=True)[1:])
        assert not ended.value.code, line


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python(desk: Path) -> None:
    (block,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_folding(desk: Path, pixels) -> None:  # type: ignore[no-untyped-def]
    (desk / "photos").mkdir()
    for number in range(3):
        PIL.Image.fromarray(pixels(80, 96, number)).save(desk / f"photos/{number}.png")
    run_all("fold")
    assert (desk / "unit-of-photos/config.json").is_file()


def test_conversion(desk: Path) -> None:
    write_checkpoint(desk / "original.safetensors", original_tensors(SHAPES["deep"]))
    run_all("convert")
    assert (desk / "vae.ckpt").is_file()
