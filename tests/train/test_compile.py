"""torch.compile and gradient checkpointing change the time, not the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from train.sections import TrainConfig
from train.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by dynamo
@pytest.mark.parametrize("setting", ["compile", "gradient_checkpointing"])
def test_the_weights_are_the_same(make_config: MakeConfig, tmp_path: Path, setting: str) -> None:
    """With the adaptive weight, which walks the graph a second time."""
    sections: dict[str, Any] = {
        "adversarial": {
            "disc_weight": 1.0,
            "disc_adaptive": True,
            "disc_layers": 1,
            "disc_channels": 8,
        },
        "optimizer": {"learning_rate": 1e-4},
    }
    found = []
    for value in (False, True):
        run = {setting: value, "output_dir": str(tmp_path / str(value))}
        trainer = Trainer(make_config(**sections, run=run))
        trainer.run()
        found.append(trainer.model.state_dict())
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=0, atol=1e-5)
