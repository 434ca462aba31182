"""The commands of the README are run as they stand there."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

from codec import cli as codec_cli
from eval import cli as eval_cli
from train import cli as train_cli
from train.config import load_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {
    "latent-codec": codec_cli,
    "latent-codec-train": train_cli,
    "latent-codec-eval": eval_cli,
}


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(language: str) -> list[list[str]]:
    """The commands of those blocks, as words, comments cut off."""
    lines = [line for block in blocks(language) for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels) -> Path:  # type: ignore[no-untyped-def]
    """A folder as the README assumes it: photo.jpg, and photos/ with a few more."""
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(["photo.jpg", "photos/a.jpg", "photos/b.png"]):
        PIL.Image.fromarray(pixels(200, 240, number)).save(tmp_path / name)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Run a console command in this process and expect success."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exit_info:
        COMMANDS[words[0]].main()
    assert not exit_info.value.code, words


def test_the_commands_of_use(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in commands("bash"):
        call(monkeypatch, words)
    with PIL.Image.open(desk / "photo.png") as image:
        assert image.size == (240, 200)
    assert {path.name for path in (desk / "compressed").iterdir()} == {"a.lc", "b.lc"}


def test_the_commands_of_datasets(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in commands("dataset"):
        call(monkeypatch, words)
    assert (desk / "latents" / "manifest.json").is_file()
    assert (desk / "look" / "contact-sheet.png").is_file()


def test_the_python_of_use(desk: Path) -> None:
    for block in blocks("python"):
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_commands_of_training(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, but short and without LPIPS, whose backbone may not be at hand."""
    short = ["max_images=4", "batch_size=2", "crop_size=64", "perceptual_weight=0"]
    for words in commands("train"):
        trains = words[0] == "latent-codec-train" and words[1] != "export"
        if trains:
            assert load_config(words[1], words[2:]).run.max_minutes == 60
        call(monkeypatch, words + short if trains else words)
    assert (desk / "my-codec" / "codec.json").is_file()


def test_the_commands_of_evaluation(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [words[1] for words in commands("eval")]
    assert names == ["images", "rd", "coder", "bench", "loader", "demo"]
    for words in commands("eval"):
        if words[1] in ("images", "rd"):
            call(monkeypatch, [*words, "--no-lpips"])
        if words[1] == "coder":
            call(monkeypatch, [*words, "--qualities", "50"])
    assert (desk / "figures" / "results.json").is_file()
    assert (desk / "curves" / "rd.csv").is_file()


def test_every_linked_file_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
