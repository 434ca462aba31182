"""What a run writes down: configuration, means and times, log, warnings, trackers, pictures."""

import importlib.util
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from train import meter as meter_module
from train import trackers
from train.bookkeeping import PICTURES_KEPT, RunLog
from train.health import health_warnings
from train.meter import Meter
from train.records import save_config
from train.sections import TrainConfig
from train.state import Progress, save_checkpoint
from train.trackers import TrackerError, tracker_names

MakeConfig = Callable[..., TrainConfig]


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(meter_module.time, "monotonic", lambda: self.now)

    def tick(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_means_are_over_the_steps_that_had_a_term(accelerator: Accelerator) -> None:
    meter = Meter()
    meter.add({"loss/l2": torch.tensor(0.25), "optim/learning_rate": 0.1})
    meter.add({"loss/l2": torch.tensor(0.75), "optim/learning_rate": 0.3, "adv/r1": 7.0})
    assert meter.steps == 2
    figures = meter.flush(accelerator)
    assert figures["loss/l2"] == 0.5
    assert figures["optim/learning_rate"] == pytest.approx(0.2)
    assert figures["adv/r1"] == 7
    assert figures["train/psnr"] == pytest.approx(10 * np.log10(4 / 0.5))
    assert meter.steps == 0
    meter.add({"loss/l1": torch.tensor(3.0, requires_grad=True)})
    again = meter.flush(accelerator)
    assert again["loss/l1"] == 3
    assert "loss/l2" not in again
    assert "train/psnr" not in again


def test_adding_does_not_wait_for_the_device(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(tensor: torch.Tensor) -> float:
        raise AssertionError("a value was read from the device")

    meter = Meter()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "item", wait)
        patch.setattr(torch.Tensor, "__float__", wait)
        for value in (1.0, 2.0):
            meter.add({"loss/l1": torch.tensor(value, dtype=torch.bfloat16)})
    assert meter.flush(accelerator)["loss/l1"] == 1.5


def test_shares_of_time_sum_to_one(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    meter = Meter()
    for _ in range(2):
        with meter.waiting():
            clock.tick(1)
        clock.tick(5)
        with meter.paused():  # held-out figures are no part of a step
            clock.tick(100)
        with meter.logging():
            clock.tick(2)
            meter.add({"loss/l1": 1.0})
    figures = meter.flush(accelerator)
    assert figures["time/step_seconds"] == 8
    assert figures["time/data_share"] == 1 / 8
    assert figures["time/step_share"] == 5 / 8
    assert figures["time/log_share"] == 2 / 8


def test_a_flush_inside_a_section_splits_it(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    meter = Meter()
    clock.tick(3)
    with meter.logging():
        meter.add({"loss/l1": 1.0})
        clock.tick(1)
        first = meter.flush(accelerator)
        clock.tick(4)  # writing the line
    clock.tick(4)
    meter.add({"loss/l1": 1.0})
    second = meter.flush(accelerator)
    assert (first["time/step_share"], first["time/log_share"]) == (0.75, 0.25)
    assert (second["time/step_share"], second["time/log_share"]) == (0.5, 0.5)


def test_real_time_is_measured(accelerator: Accelerator) -> None:
    meter = Meter()
    with meter.waiting():
        time.sleep(0.03)
    time.sleep(0.01)
    meter.add({"loss/l1": 1.0})
    figures = meter.flush(accelerator)
    shares = [figures[f"time/{part}_share"] for part in ("data", "step", "log")]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    seconds = figures[
        "time/step_seconds"
    ]  # a busy machine may add to any part, and never takes away
    assert shares[0] * seconds >= 0.03
    assert shares[1] * seconds >= 0.01
    assert shares[2] == 0


def test_a_run_states_what_it_is(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    save_config(config, tmp_path / "run", {"num_images": 6, "sha256": "ab"})
    run_dir = tmp_path / "run"
    assert yaml.safe_load((run_dir / "config.yaml").read_text()) == config.model_dump(mode="json")
    versions = json.loads((run_dir / "versions.json").read_text())
    assert versions["torch"] == torch.__version__.split("+")[0]
    assert versions["processes"] == 1
    assert json.loads((run_dir / "data.json").read_text()) == {"num_images": 6, "sha256": "ab"}
    assert {path.name for path in run_dir.iterdir()} == {
        "config.yaml",
        "versions.json",
        "data.json",
    }


def test_a_resumed_run_keeps_the_earlier_part_and_announces_other_data(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(make_config(), tmp_path, {"num_images": 6, "sha256": "ab"})
    save_checkpoint(tmp_path, {}, {}, Progress(40, 20, 1.0), total_limit=2)
    save_config(make_config(), tmp_path, {"num_images": 6, "sha256": "ab"})
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.glob("*-000000040.*"))

    longer = make_config(run={"max_images": 99})
    save_config(longer, tmp_path, {"num_images": 7, "sha256": "cd"})
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "found other training data (7 images) than this run had before (6 images)" in error
    earlier = {path.name for path in tmp_path.glob("*-000000040.*")}
    assert earlier == {"config-000000040.yaml", "data-000000040.json"}
    budget = {
        name: yaml.safe_load((tmp_path / name).read_text())["run"]["max_images"]
        for name in ("config-000000040.yaml", "config.yaml")
    }
    assert budget == {"config-000000040.yaml": 8, "config.yaml": 99}


def test_tensorboard_holds_scalars_and_pictures(make_config: MakeConfig, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config()
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    accelerator = Accelerator(cpu=True, log_with=tracker_names(config), project_dir=tmp_path)
    with RunLog(tmp_path, config, accelerator) as log:
        log.write(Progress(4, 2, 1.0), {"loss/l1": 0.5, "loss/total": 0.7})
        log.write(Progress(8, 4, 2.0), {"loss/l1": 0.25})
        log.pictures(Progress(8, 4, 2.0), {"reconstructions": pixels})
        log.details(Progress(8, 4, 2.0), {"kl_bits_by_channel": [0.5, 3.0, math.nan]})
    events = EventAccumulator(str(tmp_path / "latent-codec"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss/l1")]
    assert found == [(4, 0.5), (8, 0.25)]
    (image,) = events.Images("reconstructions")
    assert (image.step, image.width, image.height) == (8, 7, 5)
    (event,) = events.Histograms("health/kl_bits_by_channel")
    histogram = event.histogram_value
    assert (event.step, histogram.num) == (8, 2)
    assert (histogram.min, histogram.max) == (0.5, 3.0)


def test_a_tracker_without_pictures_still_gets_figures_and_the_configuration(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    class Recorder(GeneralTracker):
        name = "recorder"
        requires_logging_directory = False
        seen: list[Any] = []  # noqa: RUF012

        @property
        def tracker(self) -> list[Any]:
            return self.seen

        def start(self) -> None:
            self.seen.append("start")

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.seen.append(values)

        def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
            self.seen.append((step, values))

        def finish(self) -> None:
            self.seen.append("finish")

    recorder = Recorder()
    with RunLog(tmp_path, make_config(), Accelerator(cpu=True, log_with=recorder)) as log:
        log.write(Progress(4, 2, 1.0), {"loss/l1": 0.5})
        log.details(Progress(4, 2, 1.0), {"kl_bits_by_channel": [0.5]})
        log.pictures(Progress(4, 2, 1.0), {"grid": np.zeros((2, 2, 3), np.uint8)})
    start, config, line, finish = recorder.seen
    assert (start, line, finish) == ("start", (4, {"loss/l1": 0.5}), "finish")
    assert config["run.batch_size"] == 2
    assert config["model.init_from"] == "None"
    assert (tmp_path / "pictures" / "grid-000000004.png").is_file()


def test_the_newest_pictures_stay(
    make_config: MakeConfig, tmp_path: Path, accelerator: Accelerator
) -> None:
    with RunLog(tmp_path, make_config(), accelerator) as log:
        for images in range(2, 12, 2):
            grey = np.full((3, 4, 3), images, np.uint8)
            log.pictures(Progress(images, 1, 1.0), {"grid": grey, "grid-b": grey})
    names = sorted(path.name for path in (tmp_path / "pictures").glob("grid-0*"))
    assert names == [f"grid-{images:09d}.png" for images in (6, 8, 10)]
    assert len(list((tmp_path / "pictures").iterdir())) == 2 * PICTURES_KEPT
    newest = np.asarray(PIL.Image.open(tmp_path / "pictures" / names[-1]))
    assert newest.shape == (3, 4, 3)
    assert (newest == 10).all()


def test_a_missing_tracker_says_what_to_install(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    hidden = {"comet_ml", "tensorboard"}

    def find(name: str) -> Any:
        return None if name in hidden else find_spec(name)

    monkeypatch.setattr(trackers.importlib.util, "find_spec", find)
    with pytest.raises(TrackerError, match="pip install tensorboard, or leave tensorboard out"):
        tracker_names(make_config())
    with pytest.raises(TrackerError, match=r"no package 'comet-ml'"):
        tracker_names(make_config(run={"trackers": ["comet_ml"]}))
    with pytest.raises(TrackerError, match=r"unknown tracker 'tensorbord'.*tensorboard"):
        tracker_names(make_config(run={"trackers": ["tensorbord"]}))
    assert tracker_names(make_config(run={"trackers": []})) == []


def test_warnings_are_not_repeated(
    make_config: MakeConfig,
    tmp_path: Path,
    accelerator: Accelerator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config()

    def collapsed(bits: float, active: float) -> list[str]:
        figures = {"health/kl_bits": bits, "health/active_units": active}
        return health_warnings(figures, config)

    with RunLog(tmp_path, config, accelerator) as log:
        log.warn(Progress(2, 1, 1.0), collapsed(0.03, 0.25))
        log.warn(Progress(4, 2, 2.0), [*collapsed(1e-5, 0.0), "skipped a/1.png: truncated"])
        log.warn(Progress(6, 3, 3.0), ["skipped a/2.png: truncated", "skipped a/1.png: truncated"])
    lines = read_log(tmp_path)
    assert [(line["images"], line["warning"]) for line in lines] == [
        (2, *collapsed(0.03, 0.25)),
        (4, "skipped a/1.png: truncated"),
        (6, "skipped a/2.png: truncated"),
    ]
    assert capsys.readouterr().err.count("warning: ") == 3


def test_a_line_cut_short_does_not_spoil_the_next(
    make_config: MakeConfig, tmp_path: Path, accelerator: Accelerator
) -> None:
    (tmp_path / "log.jsonl").write_text('{"images": 2}\n{"images": 4, "lo')
    with RunLog(tmp_path, make_config(), accelerator) as log:
        log.write(Progress(6, 3, 1.26), {"optim/learning_rate": 1.23456789e-7})
    first, _, last = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(first) == {"images": 2}
    expected = {"images": 6, "step": 3, "seconds": 1.3, "optim/learning_rate": 1.234568e-7}
    assert json.loads(last) == expected


def test_the_log_is_json_whatever_the_figures(
    make_config: MakeConfig, tmp_path: Path, accelerator: Accelerator
) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    figures = {"loss/l1": math.nan, "val/psnr": math.inf, "adv/r1": -math.inf, "loss/l2": 0.5}
    with RunLog(tmp_path, make_config(), accelerator) as log:
        log.write(Progress(6, 3, 1.0), figures)
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert {name: line[name] for name in figures} == {**dict.fromkeys(figures), "loss/l2": 0.5}


def test_health_json_holds_the_newest_details(
    make_config: MakeConfig, tmp_path: Path, accelerator: Accelerator
) -> None:
    details = {"held_out": "six images", "kl_edges": [0.0, None], "correlation": [[1.0, 0.25]]}
    path = tmp_path / "health.json"
    with RunLog(tmp_path, make_config(), accelerator) as log:
        log.details(Progress(2, 1, 1.0), {})
        assert not path.exists()
        log.details(Progress(4, 2, 2.0), {**details, "correlation": [[math.nan, 1.0]]})
        earlier = json.loads(path.read_text())
        log.details(Progress(6, 3, 3.0), details)
    assert earlier == {"images": 4, **details, "correlation": [[None, 1.0]]}
    assert json.loads(path.read_text()) == {"images": 6, **details}
    assert {found.name for found in tmp_path.iterdir()} == {"health.json"}
