"""The perceptual distance LPIPS (Zhang et al. 2018), for measuring and as a training loss.

The lpips package brings the learned weights of the last layer but not the ImageNet backbone below
it. A random backbone is not a perceptual metric (it ranks the package's own example pair the wrong
way round), so the backbone is always a real one: from a file that the user names, or from
torchvision's own download, and otherwise there is an error that says what to provide.

Shapes: B batch, C features, H W pixels.
"""

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self, TypeAlias

import lpips
import torch
import torchvision  # type: ignore[import-untyped]
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from codec.errors import LatentCodecError

Net: TypeAlias = Literal["squeeze", "alex", "vgg"]

# The torchvision weights that LPIPS means by each name, and our name of the file under lpips/.
_WEIGHTS: dict[Net, tuple[str, str]] = {
    "squeeze": ("SqueezeNet1_1_Weights.IMAGENET1K_V1", "squeezenet1_1_features.pth"),
    "alex": ("AlexNet_Weights.IMAGENET1K_V1", "alexnet_features.pth"),
    "vgg": ("VGG16_Weights.IMAGENET1K_V1", "vgg16_features.pth"),
}
MIN_SIDE = 32  # smaller pictures do not survive the strides of every backbone
# What torch.load and load_file raise for a file that is not theirs depends on its first bytes.
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    KeyError,
    pickle.UnpicklingError,
    SafetensorError,
)
_EPSILON = 1e-10  # the lpips package's own, under the norm of a feature vector


class BackboneError(LatentCodecError):
    """A backbone file was found but cannot be used."""


class BackboneMissingError(BackboneError):
    """No backbone file was named and none could be downloaded."""


class PerceptualDistance(nn.Module):
    """LPIPS with frozen weights: differentiable in its inputs, always in evaluation mode.

    The convolutions run under the caller's autocast and memory format; the distance itself is
    computed in float32, as in the paper.
    """

    def __init__(self, net: Net, backbone: Mapping[str, Tensor], origin: str) -> None:
        """Build the distance from backbone tensors keyed like torchvision's `features`.

        Raises:
            BackboneError: the tensors are not those of this network; `origin` is named.
        """
        super().__init__()
        self.net_name: Net = net
        network = _untrained(net)
        _fill(network.net, backbone, origin)
        self.scaling = network.scaling_layer
        self.features = network.net
        self.heads = nn.ModuleList(network.lins)
        self.requires_grad_(False)
        self.eval()

    @property
    def name(self) -> str:
        """The metric with its backbone, as tables must print it: `LPIPS(squeeze)`."""
        return f"LPIPS({self.net_name})"

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the heads have dropout, which would make the distance random."""
        return super().train(False)

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Return the distance of each pair, `(B,)` float32, 0 for identical images.

        Args:
            image: `(B, 3, H, W)` float in [-1, 1], sides of at least 32 pixels.
            reference: like `image`.
        """
        pairs = zip(self._features(image), self._features(reference), self.heads, strict=True)
        with torch.autocast(image.device.type, enabled=False):
            layers = [
                head((_normalise(first) - _normalise(second)).square()).mean(dim=(1, 2, 3))
                for first, second, head in pairs
            ]
            distance: Tensor = torch.stack(layers).sum(dim=0)
        return distance

    def _features(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.features(self.scaling(image)))


def load_lpips(net: Net = "squeeze", backbone: str | Path | None = None) -> PerceptualDistance:
    """Load LPIPS with a trained backbone, on the CPU in float32.

    The backbone is looked for in this order: `backbone`; the file named by `LATENT_CODEC_LPIPS`;
    `lpips/squeezenet1_1_features.pth` in the folder named by `LATENT_CODEC_SHARED`; torchvision's
    download (or its cache).

    Args:
        net: the backbone network. Values of different networks must never share a table.
        backbone: a file of torchvision's weights (`.pth` or `.safetensors`), either the whole
            network or the `features` part alone.

    Raises:
        BackboneError: the file is unreadable or holds another network.
        BackboneMissingError: there is no file, and the download failed.
    """
    if net not in _WEIGHTS:
        raise BackboneError(
            f"found the LPIPS backbone name {net!r}, expected one of {', '.join(_WEIGHTS)}"
        )
    path = Path(backbone) if backbone is not None else find_backbone(net)
    if path is None:
        return PerceptualDistance(net, _download(net), "torchvision's download")
    return PerceptualDistance(net, _read(path), str(path))


def find_backbone(net: Net = "squeeze") -> Path | None:
    """Return the backbone file that the environment names, or None.

    `LATENT_CODEC_LPIPS` is taken at its word (a wrong path is an error later, never ignored);
    `LATENT_CODEC_SHARED` counts only if the file is in it.
    """
    if named := os.environ.get("LATENT_CODEC_LPIPS"):
        return Path(named)
    if shared := os.environ.get("LATENT_CODEC_SHARED"):
        path = Path(shared) / "lpips" / _WEIGHTS[net][1]
        return path if path.is_file() else None
    return None


def _normalise(features: Tensor) -> Tensor:
    """Scale each feature vector `(B, C, H, W)` to unit length, in float32.

    `vector_norm` has gradient zero where all features are zero; the package's sqrt(sum(x^2)) gives
    NaN there, which a training run meets on any flat black patch.
    """
    features = features.float()
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)  # (B, 1, H, W)
    unit: Tensor = features / (length + _EPSILON)
    return unit


def _untrained(net: Net) -> lpips.LPIPS:
    """Return the package's module: trained heads, and a backbone that is yet to be filled."""
    # The random initialisation must not shift the random numbers of a training run.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # lpips still passes torchvision's old `pretrained` argument; nothing to act on for users.
        for message in ("The parameter 'pretrained' is", "Arguments other than a weight enum"):
            warnings.filterwarnings("ignore", message, UserWarning, r"torchvision\.models\._utils")
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def _fill(features: nn.Module, backbone: Mapping[str, Tensor], origin: str) -> None:
    """Copy the backbone's tensors into the package's slices; names and shapes must all agree."""
    prefix = "features."  # a checkpoint of the whole network also has a classifier
    if any(name.startswith(prefix) for name in backbone):
        backbone = {k.removeprefix(prefix): v for k, v in backbone.items() if k.startswith(prefix)}
    # The package cuts `features` into slices: `slice2.3.squeeze.weight` is `3.squeeze.weight`.
    targets = {name.split(".", 1)[1]: tensor for name, tensor in features.state_dict().items()}
    fitting = [n for n in targets if n in backbone and backbone[n].shape == targets[n].shape]
    if len(fitting) != len(targets) or len(backbone) != len(targets):
        raise BackboneError(
            f"found {len(backbone)} tensors in {origin}, of which {len(fitting)} fit, expected the "
            f"{len(targets)} of the network's ImageNet features in torchvision's naming: name "
            "another file with --lpips-backbone or LATENT_CODEC_LPIPS, or another network"
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(backbone[name])


def _read(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors; never executes a pickle."""
    if not path.is_file():
        raise BackboneError(
            f"the LPIPS backbone file {path} does not exist: name one with --lpips-backbone or "
            "LATENT_CODEC_LPIPS"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as e:
        raise BackboneError(
            f"cannot read the LPIPS backbone file {path}: expected tensors saved by torch "
            "(.pth) or safetensors"
        ) from e
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise BackboneError(f"found no dictionary of tensors in {path}, expected a state dict")
    return dict(tensors)


def _download(net: Net) -> dict[str, Tensor]:
    """Fetch torchvision's weights, or say everything a user can do without a network."""
    weights, file_name = _WEIGHTS[net]
    try:
        state: dict[str, Tensor] = torchvision.models.get_weight(weights).get_state_dict(
            progress=True, check_hash=True
        )
    except (OSError, RuntimeError) as e:  # no network; a damaged download
        raise BackboneMissingError(
            f"LPIPS needs the ImageNet backbone of '{net}', found no file, and could not download "
            f"torchvision's {weights}: name a file with --lpips-backbone FILE, with "
            "loss.perceptual_backbone in training or with the variable LATENT_CODEC_LPIPS, or "
            f"put lpips/{file_name} into the folder that LATENT_CODEC_SHARED names"
        ) from e
    return state
