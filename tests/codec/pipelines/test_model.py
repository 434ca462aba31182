"""What diffusers' own tests ask of a model, asked of every kind of our autoencoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from codec import Codec
from codec.autoencoder import LatentAutoencoder
from codec.networks import ResidualBlock
from tests.codec.pipelines.families import make_vae

KINDS: dict[str, dict[str, Any]] = {
    "constant": {},
    "learned": {"posterior_std": None},
    "folded": {"posterior_std": None, "decoder_in_conv": True},
    "conditional": {"num_classes": 3},
    "vq": {"bottleneck": "vq", "codebook_size": 16},
    "vq2": {"bottleneck": "vq2", "codebook_size": 16},
    "fsq": {"bottleneck": "fsq", "fsq_levels": (8, 5, 5, 5)},
}
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> LatentAutoencoder:
    return make_vae(**KINDS[request.param])


def image(height: int = 48, width: int = 32, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, height, width, generator=generator) * 2 - 1


@torch.no_grad()
def encoded(model: Any, x: Tensor) -> Tensor:
    output = model.encode(x)
    posterior = getattr(output, "latent_dist", None)
    latents: Tensor = output.latents if posterior is None else posterior.mode()
    return latents


@torch.no_grad()
def passed(model: Any, x: Tensor | None = None) -> Tensor:
    """The reconstruction by way of `encode` and `decode`, as pipelines call them."""
    x = image() if x is None else x
    sample: Tensor = model.decode(encoded(model, x)).sample
    return sample


def test_it_is_deterministic(model: LatentAutoencoder) -> None:
    first, second = passed(model), passed(model)
    assert torch.equal(first, second)
    assert torch.equal(first, model(image()).sample)
    assert first.std() > 0.05


def test_tuples_hold_what_objects_hold(model: LatentAutoencoder) -> None:
    x = image()
    whole, (sample,) = model(x), model(x, return_dict=False)
    assert torch.equal(whole.sample, sample)
    output, found = model.encode(x), model.encode(x, return_dict=False)
    if hasattr(output, "latent_dist"):
        assert torch.equal(output.latent_dist.mode(), found[0].mode())
    else:
        latents, indices, commitment = found
        assert torch.equal(latents, output.latents)
        assert all(map(torch.equal, indices, output.indices))
        assert torch.equal(commitment, output.commitment)
    (decoded,) = model.decode(encoded(model, x), return_dict=False)
    assert torch.equal(decoded, sample)


def test_save_and_load(model: LatentAutoencoder, tmp_path: Path) -> None:
    expected = passed(model)
    model.save_pretrained(tmp_path)
    loaded, report = LatentAutoencoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(passed(loaded), expected)
    again = LatentAutoencoder.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert torch.equal(passed(again), expected)


def test_a_variant(model: LatentAutoencoder, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, variant="ema")
    assert (tmp_path / "diffusion_pytorch_model.ema.safetensors").is_file()
    loaded = LatentAutoencoder.from_pretrained(tmp_path, variant="ema")
    assert torch.equal(passed(loaded), passed(model))
    with pytest.raises(OSError, match="no file named"):
        LatentAutoencoder.from_pretrained(tmp_path, local_files_only=True)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(model: LatentAutoencoder, tmp_path: Path, variant: str | None) -> None:
    model.save_pretrained(tmp_path, max_shard_size="20KB", variant=variant)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = LatentAutoencoder.from_pretrained(tmp_path, variant=variant)
    assert torch.equal(passed(loaded), passed(model))
    if variant is None and not model.config.num_classes:
        codec = Codec.from_pretrained(tmp_path, dtype="float32")
        torch.testing.assert_close(passed(codec.autoencoder), passed(model), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("low_memory", [True, False])
def test_it_is_loaded_in_a_dtype(
    model: LatentAutoencoder, tmp_path: Path, dtype: torch.dtype, low_memory: bool
) -> None:
    model.save_pretrained(tmp_path)
    loaded = LatentAutoencoder.from_pretrained(
        tmp_path, torch_dtype=dtype, low_cpu_mem_usage=low_memory
    )
    assert loaded.dtype == dtype
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    latents = encoded(loaded, image().to(dtype))
    assert latents.dtype == dtype
    assert loaded.decode(latents).sample.dtype == dtype
    restored = LatentAutoencoder.from_pretrained(tmp_path)
    assert restored.dtype == torch.float32


def test_a_half_stays_one_on_disk(model: LatentAutoencoder, tmp_path: Path) -> None:
    """Weights saved in fp16 load in fp32 with the rounded values."""
    nn.Module.to(model, torch.float16).save_pretrained(tmp_path)
    loaded = LatentAutoencoder.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    assert torch.equal(passed(loaded), passed(nn.Module.to(model, torch.float32)))


def test_from_config(model: LatentAutoencoder) -> None:
    rebuilt = LatentAutoencoder.from_config(model.config)
    assert rebuilt.config == model.config
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(passed(rebuilt), passed(model))


@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model:FutureWarning")
def test_averaged_weights(model: LatentAutoencoder, tmp_path: Path) -> None:
    """diffusers' EMAModel builds a copy from the configuration."""
    average = EMAModel(model.parameters(), model_cls=LatentAutoencoder, model_config=model.config)
    average.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, LatentAutoencoder)
    for first, second in zip(average.shadow_params, loaded.shadow_params, strict=True):
        assert torch.equal(first, second)


def gradients(model: LatentAutoencoder) -> dict[str, Tensor]:
    model.zero_grad()
    model(image()).sample.square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_the_same_gradients(model: LatentAutoencoder) -> None:
    model.train()
    plain = gradients(model)
    assert any(name.startswith("encoder.") and grad.any() for name, grad in plain.items())
    calls = []
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            block.register_forward_pre_hook(lambda *_: calls.append(1))
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    recomputed = gradients(model)
    assert len(calls) == 2 * 4  # every block ran twice
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(gradient, recomputed[name])


def test_tiles_and_slices(model: LatentAutoencoder) -> None:
    x = image(144, 160)
    whole, latents = passed(model, x), encoded(model, x)
    model.tile_cells = 6
    model.enable_tiling()
    model.enable_slicing()
    torch.testing.assert_close(encoded(model, x), latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(passed(model, x), whole, rtol=0, atol=1e-5)
    model.disable_tiling()
    model.disable_slicing()
    assert torch.equal(passed(model, x), whole)


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_layerwise_casting(
    model: LatentAutoencoder, storage: torch.dtype, compute: torch.dtype
) -> None:
    """Weights rest in 8 bits and work in more; what pipelines ask for the dtype is the latter."""
    nn.Module.to(model, compute)
    exact = passed(model, image().to(compute))
    model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=compute)
    kept = {m.weight.dtype for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert kept == {storage}
    assert model.dtype == compute
    latents = encoded(model, image().to(compute))
    assert latents.dtype == compute
    sample = passed(model, image().to(compute))
    assert sample.dtype == compute
    assert (sample - exact).abs().mean() < exact.std()
    assert {m.weight.dtype for m in model.modules() if isinstance(m, nn.Conv2d)} == {storage}


def test_layerwise_casting_trains(model: LatentAutoencoder) -> None:
    model.train()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with torch.autocast("cpu"):  # without it torch's own backward pass meets the 8 bits
        loss = model(image()).sample.float().square().mean()
    loss.backward()
    assert any(p.grad is not None and p.grad.float().any() for p in model.parameters())


@pytest.mark.parametrize("method", ["encode", "decode", "forward"])
def test_hooks_of_offloading_run_before_every_method(model: LatentAutoencoder, method: str) -> None:
    """`enable_model_cpu_offload` brings a model to the device by such a hook."""
    calls = []

    class Hook(accelerate.hooks.ModelHook):  # type: ignore[misc]
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(module)
            return args, kwargs

    latents = encoded(model, image())
    accelerate.hooks.add_hook_to_module(model, Hook())
    getattr(model, method)(latents if method == "decode" else image())
    assert calls[0] is model


def on_the_cpu(model: LatentAutoencoder, folder: Path) -> None:
    accelerate.cpu_offload(model, execution_device="cpu")


def on_the_disk(model: LatentAutoencoder, folder: Path) -> None:
    accelerate.disk_offload(model, folder, execution_device="cpu")


def by_leaf(model: LatentAutoencoder, folder: Path) -> None:
    model.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


def by_block(model: LatentAutoencoder, folder: Path) -> None:
    model.enable_group_offload(
        torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )


@pytest.mark.parametrize("offload", [on_the_cpu, on_the_disk, by_leaf, by_block])
def test_offloading_changes_nothing(
    model: LatentAutoencoder, offload: Callable[..., None], tmp_path: Path
) -> None:
    expected = passed(model)
    offload(model, tmp_path)
    if offload in (on_the_cpu, on_the_disk):
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert torch.equal(passed(model), expected)
    assert torch.equal(passed(model), expected)


@pytest.mark.parametrize("offload", [by_leaf, by_block])
def test_groups_come_before_they_are_used(
    model: LatentAutoencoder,
    offload: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`encode` brings all weights of its half, `decode` those of the other, without `forward`."""
    brought: set[int] = set()
    onload = ModuleGroup.onload_

    def noted(group: ModuleGroup) -> None:
        loose = [*group.parameters, *group.buffers]
        inside = [one for module in group.modules for one in module.parameters()]
        brought.update(id(one) for one in (*loose, *inside))
        onload(group)

    monkeypatch.setattr(ModuleGroup, "onload_", noted)
    expected, latents = passed(model), encoded(model, image())
    offload(model, tmp_path)
    brought.clear()
    encoded(model, image())
    halves = {"encode": (model.encoder, model.bottleneck), "decode": (model.decoder,)}
    assert {id(one) for half in halves["encode"] for one in half.parameters()} <= brought
    model.decode(latents)
    assert {id(one) for half in halves["decode"] for one in half.parameters()} <= brought
    assert torch.equal(passed(model), expected)


# a conditional model looks at its labels, which breaks the graph
@pytest.mark.parametrize(
    "kind",
    [
        "constant",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("folded", "vq", "vq2", "fsq")),
    ],
)
def test_compiled_whole(kind: str) -> None:
    """Both halves without a break in the graph, once for all calls of one size."""
    model = make_vae(**KINDS[kind])
    torch.compiler.reset()
    x = image()
    latents, expected = encoded(model, x), passed(model, x)
    encode = torch.compile(model.encode, backend="eager", fullgraph=True)
    decode = torch.compile(model.decode, backend="eager", fullgraph=True)
    with torch.no_grad():
        output = encode(x)
        found = output.latents if hasattr(output, "latents") else output.latent_dist.mode()
        torch.testing.assert_close(found, latents)
        torch.testing.assert_close(decode(latents).sample, expected)
        with torch._dynamo.config.patch(error_on_recompile=True):
            decode(latents)
            encode(x)


def test_repeated_blocks_are_compiled() -> None:
    model = make_vae()
    torch.compiler.reset()
    expected = passed(model)
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    torch.testing.assert_close(passed(model), expected)


def test_attributes_are_what_they_are(model: LatentAutoencoder) -> None:
    with pytest.raises(AttributeError, match="no_such_attribute"):
        model.no_such_attribute  # noqa: B018
    with pytest.warns(FutureWarning, match="config"):
        assert model.sample_size == 64  # diffusers' own notice: use the configuration
    assert model.post_quant_conv.weight.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("switch", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_a_pipeline_offloads(switch: str) -> None:
    from tests.codec.pipelines.families import FAMILIES, run

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pipeline = FAMILIES["sd"].pipeline()
    expected = run(pipeline, "pt")
    getattr(pipeline, switch)()
    images = run(pipeline, "pt")
    torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_groups_are_offloaded(kind: str, level: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = make_vae(**KINDS[kind])
    expected = passed(model)
    model.enable_group_offload(torch.device("cuda"), offload_type=level, num_blocks_per_group=1)
    found = passed(model, image().cuda())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-2)
