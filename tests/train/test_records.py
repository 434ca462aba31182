"""What a resumed run says about settings that it had otherwise before."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from train.records import save_config
from train.sections import TrainConfig
from train.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]
DATA = {"num_images": 6, "sha256": "ab"}


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [("seed", 0, 5), ("batch_size", 2, 4), ("gradient_accumulation_steps", 1, 2)],
)
def test_a_resumed_run_announces_what_changes_its_samples(
    name: str,
    before: int,
    now: int,
    make_config: MakeConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Trainer(make_config(run={name: before, "max_images": 4})).run()
    capsys.readouterr()
    Trainer(make_config(run={name: now, "max_images": 12}), resume=True).run()
    said = [line for line in capsys.readouterr().err.splitlines() if "before" in line]
    assert said == [
        f"warning: found run.{name} {now} (before: {before}): the run goes on with that, so it "
        "will not repeat what an uninterrupted run would give"
    ]


def test_another_number_of_processes_is_announced(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(run={"seed": 1})
    save_config(config, tmp_path, DATA)
    path = tmp_path / "versions.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processes": 2}))
    save_config(make_config(), tmp_path, DATA)
    assert "found run.seed 0 (before: 1), processes 1 (before: 2): the" in capsys.readouterr().err
    save_config(make_config(), tmp_path, DATA)
    assert capsys.readouterr().err == ""  # that is what it was before


def test_a_longer_budget_is_no_other_run(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(make_config(run={"max_images": 4})).run()
    capsys.readouterr()
    changed = {"max_images": 8, "max_minutes": 9.0, "log_every": 2, "checkpoint_minutes": 1.0}
    Trainer(make_config(run=changed), resume=True).run()
    assert "warning" not in capsys.readouterr().err
