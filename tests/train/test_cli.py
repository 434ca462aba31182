"""The command as a user meets it: help, exit codes, one sentence for an error."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from train import cli
from train.config import TrainConfig


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["latent-codec-train", *map(str, words)])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def test_a_configuration_trains_without_the_word_run(
    monkeypatch: pytest.MonkeyPatch,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
    assert call(monkeypatch, path, "max_images=4") == 0
    assert "4 images in" in capsys.readouterr().err
    assert call(monkeypatch, path, "max_images=6") == 1
    assert "add --resume" in capsys.readouterr().err
    assert call(monkeypatch, path, "max_images=6", "--resume") == 0


def test_errors_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, tmp_path / "none.yaml") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: found no file")
    assert call(monkeypatch, "export") == 2


def test_help_has_an_example_and_needs_no_torch() -> None:
    code = (
        "import sys; from train import cli; sys.argv = ['latent-codec-train', 'run', '--help']\n"
        "try: cli.main()\nfinally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Example: latent-codec-train configs/autoencoder/kl-f8d4.yaml" in result.stdout
