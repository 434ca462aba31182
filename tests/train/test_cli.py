"""The command as a user meets it: help, exit codes, one sentence for an error."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from train import cli
from train.sections import TrainConfig
from train.state import latest_good, list_checkpoints


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


def test_an_unusable_output_folder_is_wrong_use(
    monkeypatch: pytest.MonkeyPatch,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
    (tmp_path / "run").write_text("a file")
    for options in ([], ["--resume"]):
        assert call(monkeypatch, path, *options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith(f"error: found run.output_dir {tmp_path / 'run'} unusable")


def test_a_dry_run_prints_everything_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json")))
    assert call(monkeypatch, path, "batch_size=3", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# 6 images; ")
    assert "latents of 4x4x4" in printed
    expected = make_config(run={"batch_size": 3}).model_dump(mode="json")
    assert yaml.safe_load(printed) == expected  # what is printed is a configuration
    assert {entry.name for entry in tmp_path.iterdir()} == {"config.yaml"}


def test_a_damaged_checkpoint_is_passed_over_by_resume(
    monkeypatch: pytest.MonkeyPatch,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "config.yaml"
    config = make_config(run={"checkpoint_minutes": 1e-9, "checkpoints_total_limit": 3})
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert call(monkeypatch, path) == 0
    newest = list_checkpoints(tmp_path / "run")[-1]
    (newest / "state.pt").write_bytes(b"")
    capsys.readouterr()
    assert call(monkeypatch, path, "--resume") == 0
    assert f"{newest.name} is passed over: state.pt has 0 bytes" in capsys.readouterr().err
    assert latest_good(tmp_path / "run") == newest  # written anew
    text = (tmp_path / "run" / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    steps = [line["images"] for line in lines if "loss/total" in line]
    assert steps == [2, 4, 6, 8, 8]  # the last step was made again


def test_help_has_an_example_and_needs_no_torch() -> None:
    code = (
        "import sys; from train import cli\n"
        "for command in sys.argv[1:]:\n"
        "    sys.argv = ['latent-codec-train', command, '--help']\n"
        "    try: cli.main()\n"
        "    except SystemExit as exit_request: assert exit_request.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, *cli.COMMANDS]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for example in ("configs/autoencoder/kl-f8d4.yaml", "export runs/kl-f8d4 -o", "report runs/"):
        assert f"Example:\n    latent-codec-train {example}" in result.stdout
