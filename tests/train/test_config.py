"""The configuration: complete, strict, with errors that help."""

from pathlib import Path

import pytest
import yaml

from train.config import ConfigError, known_keys, load_config
from train.sections import TrainConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "autoencoder"


def write(folder: Path, **sections: object) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"data": {"folders": ["photos"]}, **sections}))
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_complete(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_CODEC_SHARED", "somewhere")
    load_config(path)
    values = yaml.safe_load(path.read_text())
    stated = {f"{section}.{key}" for section, part in values.items() for key in part}
    assert stated == set(known_keys())


def test_overrides_are_typed_and_may_leave_the_section_out(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path), ["run.max_minutes=5", "kl_weight=1e-3", "folders=[a, b]", "flip=false"]
    )
    assert config.run.max_minutes == 5.0
    assert config.loss.kl_weight == 1e-3
    assert config.data.folders == ("a", "b")
    assert config.data.flip is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rat=1", "unknown key learning_rat; did you mean optimizer.learning_rate"),
        ("loss.l1_wieght=1", "unknown key loss.l1_wieght; did you mean loss.l1_weight"),
        (
            "run.max_images=0",
            r"run.max_images: found 0; input should be greater than or equal to 1",
        ),
        ("run.max_images", "expected key=value"),
        ("run.max_images=[", "is not a YAML value"),
    ],
)
def test_a_wrong_override_is_one_clear_error(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path), [override])


def test_an_unknown_key_in_the_file_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.batchsize; did you mean run\.batch_size"):
        load_config(write(tmp_path, run={"batchsize": 4}))


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="holds no sections"):
        load_config(tmp_path / "list.yaml")


def test_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, run={"output_dir": "${RUNS_FOLDER}/a"})
    monkeypatch.setenv("RUNS_FOLDER", "there")
    assert load_config(path).run.output_dir == "there/a"
    monkeypatch.delenv("RUNS_FOLDER")
    with pytest.raises(ConfigError, match="that variable is not set"):
        load_config(path)


def test_a_resolved_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(path) == config
    assert isinstance(config, TrainConfig)
