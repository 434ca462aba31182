"""Muon over kernels: the library's update on matrices that share the kernels' memory."""

import copy
from collections.abc import Callable
from contextlib import closing
from itertools import count

import pytest
import torch
from torch import nn

from train.optimizer import KernelMuon, make_optimizer, matrix_view
from train.sections import OptimizerConfig, TrainConfig
from train.trainer import Trainer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 40, 3), nn.Conv2d(40, 32, 1))


def fill_gradients(model: nn.Module) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_kernels_get_the_update_of_torch_muon() -> None:
    model, config = network(), OptimizerConfig(name="muon", learning_rate=0.01)
    before = copy.deepcopy(model)
    optimizer = make_optimizer(model, config)
    assert isinstance(optimizer, KernelMuon)
    assert len(optimizer.kernels) == 2  # the stem's three input channels are too few
    fill_gradients(model)
    optimizer.step()
    for number in (1, 2):
        kernel, gradient = before[number].weight, model[number].weight.grad
        assert isinstance(kernel, torch.Tensor)
        assert isinstance(gradient, torch.Tensor)
        matrix = nn.Parameter(kernel.detach().permute(0, 2, 3, 1).flatten(1).clone())
        matrix.grad = gradient.permute(0, 2, 3, 1).flatten(1)
        torch.optim.Muon(
            [matrix], lr=0.01, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        ).step()
        found = model[number].weight.permute(0, 2, 3, 1).flatten(1)  # type: ignore[operator]
        torch.testing.assert_close(found, matrix)


def test_the_rest_gets_the_update_of_adamw() -> None:
    model, config = network(), OptimizerConfig(name="muon", learning_rate=0.01)
    bias = nn.Parameter(model[1].bias.detach().clone())  # type: ignore[operator]
    optimizer = make_optimizer(model, config)
    fill_gradients(model)
    bias.grad = model[1].bias.grad.clone()  # type: ignore[union-attr]
    optimizer.step()
    betas = (config.beta1, config.beta2)
    torch.optim.AdamW([bias], lr=0.01, betas=betas, weight_decay=config.weight_decay).step()
    torch.testing.assert_close(model[1].bias, bias)


def test_views_share_memory() -> None:
    kernel = torch.randn(4, 5, 3, 3).contiguous(memory_format=torch.channels_last)
    view = matrix_view(kernel)
    assert view.shape == (4, 45)
    view.zero_()
    assert not kernel.any()


def test_the_state_round_trips() -> None:
    models = [network(), network()]
    optimizers = [make_optimizer(model, OptimizerConfig(name="muon")) for model in models]
    fill_gradients(models[0])
    optimizers[0].step()
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip(models, optimizers, strict=True):
        fill_gradients(model)
        optimizer.step()
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_one_batch_is_learned(make_config: Callable[..., TrainConfig], name: str) -> None:
    config = make_config(
        optimizer={"name": name, "learning_rate": 0.004},
        loss={"l1_weight": 0.0, "l2_weight": 1.0, "kl_weight": 0.0},
        model={"block_out_channels": [32, 32, 32, 64], "posterior_std": 0.01},
        data={"min_scale": 1.0},
        run={"max_images": 240, "log_every": 40},
    )
    trainer = Trainer(config)
    with closing(trainer._batches()) as batches:
        batch = next(batches)
    trainer._batches = lambda: (batch for _ in count())  # type: ignore[method-assign]
    trainer.run()
    x = batch.pixels.float() / 127.5 - 1
    with torch.no_grad():
        error = (trainer.model(x).sample - x).square().mean()
    assert error < 0.5 * x.var()
