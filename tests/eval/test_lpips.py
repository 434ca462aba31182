"""LPIPS: its published value, its gradient, and the ways in which a backbone can be wrong."""

import os
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from eval import lpips
from eval.lpips import BackboneError, BackboneMissingError, PerceptualDistance, load_lpips

SHARED = Path(os.environ.get("LATENT_CODEC_SHARED") or Path(__file__).parents[2].parent / "shared")
BACKBONE = SHARED / "lpips" / "squeezenet1_1_features.pth"
VARIABLES = ("LATENT_CODEC_LPIPS", "LATENT_CODEC_SHARED")

needs_backbone = pytest.mark.skipif(
    not BACKBONE.is_file(), reason=f"no {BACKBONE.name}: name its folder in LATENT_CODEC_SHARED"
)


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither variable is set."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def random_network() -> dict[str, Tensor]:
    """Tensors of the right names and shapes, as of torchvision's whole network."""
    torch.manual_seed(0)
    return dict(torchvision.models.squeezenet1_1(weights=None).state_dict())


def features(network: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the `features` part, under the names that they have there."""
    prefix = "features."
    return {k.removeprefix(prefix): v for k, v in network.items() if k.startswith(prefix)}


@needs_backbone
def test_value_that_torchmetrics_documents() -> None:
    distance = load_lpips(backbone=BACKBONE)
    torch.manual_seed(42)
    first, second = torch.rand(10, 3, 100, 100) * 2 - 1, torch.rand(10, 3, 100, 100) * 2 - 1
    found = distance(first, second)
    assert found.shape == (10,)
    assert found.mean().item() == pytest.approx(0.1005, abs=5e-5)
    assert distance.name == "LPIPS(squeeze)"
    assert torch.equal(distance(first, first), torch.zeros(10))


@needs_backbone
def test_the_environment_names_the_file(monkeypatch: pytest.MonkeyPatch, no_settings: None) -> None:
    monkeypatch.setenv("LATENT_CODEC_SHARED", str(SHARED))
    assert lpips.find_backbone() == BACKBONE
    assert lpips.find_backbone("vgg") is None
    monkeypatch.setenv("LATENT_CODEC_LPIPS", "mine.pth")
    assert lpips.find_backbone() == Path("mine.pth")
    with pytest.raises(BackboneError, match=r"mine\.pth does not exist"):
        load_lpips()


def test_gradient_reaches_the_input_and_nothing_else(random_network: dict[str, Tensor]) -> None:
    distance = PerceptualDistance("squeeze", random_network, "test")
    image = torch.rand(2, 3, 48, 48).mul(2).sub(1).requires_grad_()
    distance(image, torch.zeros(2, 3, 48, 48)).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_gradient_is_finite_where_features_are_zero(random_network: dict[str, Tensor]) -> None:
    silent = {k: torch.zeros_like(v) for k, v in random_network.items()}
    distance = PerceptualDistance("squeeze", silent, "test")
    image = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance(image, torch.ones(1, 3, 32, 32)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_autocast_and_channels_last_change_little(random_network: dict[str, Tensor]) -> None:
    distance = PerceptualDistance("squeeze", random_network, "test")
    torch.manual_seed(0)
    first, second = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    expected = distance(first, second)
    distance.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = distance(first.contiguous(memory_format=torch.channels_last), second)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.05)


def test_training_mode_is_refused_in_silence(random_network: dict[str, Tensor]) -> None:
    distance = PerceptualDistance("squeeze", random_network, "test").train()
    assert not any(module.training for module in distance.modules())


def test_loading_leaves_random_numbers_alone(random_network: dict[str, Tensor]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    PerceptualDistance("squeeze", random_network, "test")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "features"])
def test_files_of_both_kinds_load(
    tmp_path: Path, random_network: dict[str, Tensor], suffix: str, whole: bool
) -> None:
    path = tmp_path / f"backbone{suffix}"
    tensors = random_network if whole else features(random_network)
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    distance = load_lpips(backbone=path)
    first = next(iter(distance.features.state_dict().values()))
    assert torch.equal(first, random_network["features.0.weight"])


def test_missing_extra_and_misshapen_tensors_are_refused(
    tmp_path: Path, random_network: dict[str, Tensor]
) -> None:
    tensors = features(random_network)
    cases: dict[str, Any] = {
        "found 49 tensors in .* of which 49 fit, expected the 50": {
            k: v for k, v in tensors.items() if k != "0.bias"
        },
        "found 51 tensors in .* of which 50 fit": tensors | {"more": torch.zeros(1)},
        "found 50 tensors in .* of which 49 fit": tensors | {"0.bias": torch.zeros(1)},
        "found no dictionary of tensors": [1, 2],
    }
    for message, content in cases.items():
        path = tmp_path / "backbone.pth"
        torch.save(content, path)
        with pytest.raises(BackboneError, match=message):
            load_lpips(backbone=path)


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x80\x02cos\nsystem\n.", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"backbone{suffix}"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match="cannot read the LPIPS backbone file"):
        load_lpips(backbone=path)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(BackboneError, match="expected one of squeeze, alex, vgg"):
        load_lpips("resnet")  # type: ignore[arg-type]


def test_without_file_and_network_the_error_says_what_to_provide(
    monkeypatch: pytest.MonkeyPatch, no_settings: None
) -> None:
    def offline(*args: object, **options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(BackboneMissingError) as caught:
        load_lpips()
    for hint in ("--lpips-backbone FILE", *VARIABLES, "lpips/squeezenet1_1_features.pth"):
        assert hint in str(caught.value)
