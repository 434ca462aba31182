"""Codes and indices are exact inverses; a codebook learns when told to, and only then."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.ltx.pipeline_ltx_latent_upsample import retrieve_latents
from vector_quantize_pytorch import FSQ

from codec import backbone, codebooks
from codec.autoencoder import LatentAutoencoder
from codec.bottlenecks import DiscreteEncoderOutput, ScalarBottleneck
from codec.codebooks import VectorQuantizer

TINY = {
    "block_out_channels": (8, 8, 8, 16),
    "encoder_layers": (0, 0, 1, 1),
    "decoder_layers": (0, 0, 1, 1),
}
KINDS = {
    "vq": {"bottleneck": "vq", "codebook_size": 32},
    "cosine": {"bottleneck": "vq", "codebook_size": 32, "codebook_cosine": True},
    "fsq": {"bottleneck": "fsq", "fsq_levels": (8, 5, 7, 4)},
    "vq2": {"bottleneck": "vq2", "codebook_size": 32},
}
LEARNED = ("vq", "cosine", "vq2")


def make_model(kind: str, **settings: object) -> LatentAutoencoder:
    """A tiny model with lively weights and codes that its latents are near to."""
    torch.manual_seed(0)
    model = LatentAutoencoder(**TINY, **KINDS[kind], **settings)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.2 if "weight" in name else 0.02)
    for quantizer in model.quantizers:
        quantizer.codebook.embed.normal_(std=0.5)
        if quantizer.codebook.use_cosine_sim:
            quantizer.codebook.embed.copy_(F.normalize(quantizer.codebook.embed, dim=-1))
    return model.train()


def images(batch: int = 2, height: int = 64, width: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, height, width, generator=generator) * 2 - 1


def codebook_state(model: LatentAutoencoder) -> list[torch.Tensor]:
    return [buffer.clone() for quantizer in model.quantizers for buffer in quantizer.buffers()]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_indices_and_latents_are_exact_inverses(
    kind: str, dtype: torch.dtype, autocast: bool
) -> None:
    model = make_model(kind).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        encoded = model.encode(images().to(dtype))
        found = model.latents_to_indices(encoded.latents)
    assert encoded.latents.dtype == dtype
    assert encoded.commitment.dtype == torch.float32
    assert not hasattr(encoded, "latent_dist")
    sides = [(4, 3), (8, 6)] if kind == "vq2" else [(8, 6)]
    assert [grid.shape for grid in encoded.indices] == [(2, *side) for side in sides]
    for grid, again in zip(encoded.indices, found, strict=True):
        assert grid.dtype == torch.int64
        assert len(grid.unique()) > 2
        assert torch.equal(grid, again)
    assert torch.equal(model.indices_to_latents(encoded.indices), encoded.latents)


@pytest.mark.parametrize("kind", KINDS)
def test_every_index_is_its_own(kind: str) -> None:
    """All codes, whether or not the encoder makes them."""
    model = make_model(kind)
    count = 8 * 5 * 7 * 4 if kind == "fsq" else 32
    every = torch.arange(count).reshape(1, 2, -1)
    grids = (every, every.repeat_interleave(2, 1).repeat_interleave(2, 2) * 7 % count)
    grids = grids if kind == "vq2" else grids[:1]
    latents = model.indices_to_latents(grids)
    for grid, again in zip(grids, model.latents_to_indices(latents), strict=True):
        assert torch.equal(grid, again)
    if kind == "cosine":
        torch.testing.assert_close(latents.norm(dim=1), torch.ones(1, 2, count // 2))


def test_the_lookup_tells_codes_apart_that_rounding_would_not() -> None:
    quantizer = VectorQuantizer(4, 64)
    steps = torch.arange(64)[:, None] * 1e-6
    quantizer.codebook.embed[0] = 1 + steps * torch.tensor([1.0, 0, 0, 1])
    assert len(quantizer.codes.unique(dim=0)) > 8
    everything = torch.arange(64).reshape(1, 8, 8)
    found = quantizer.find(quantizer.lookup(everything))
    assert torch.equal(quantizer.lookup(found), quantizer.lookup(everything))


def test_the_nearest_code_is_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = VectorQuantizer(4, 32)
    quantizer.codebook.embed.normal_()
    h = torch.randn(2, 4, 5, 7)
    distances = (h.movedim(1, -1)[..., None, :] - quantizer.codes).square().sum(-1)
    whole = quantizer(h)
    assert torch.equal(whole.indices, distances.argmin(-1))
    torch.testing.assert_close(whole.commitment, distances.amin(-1).mean() / 4)
    monkeypatch.setattr(codebooks, "_MAX_ENTRIES", 100)
    assert torch.equal(quantizer(h).indices, whole.indices)
    assert torch.equal(quantizer.find(h), whole.indices)


@pytest.mark.parametrize("kind", ["vq", "cosine", "fsq"])
def test_autocast_does_not_touch_the_quantiser(kind: str) -> None:
    """Neither what is found nor what is learned; the library minds CUDA's autocast alone."""
    states = []
    for enabled in (False, True):
        bottleneck = make_model(kind).bottleneck
        h = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = bottleneck(h)
            for quantizer in bottleneck.quantizers:
                vectors = h.movedim(1, -1).flatten(0, 2)
                quantizer.initialise(vectors)
                quantizer.update(vectors, output.indices[0].flatten())
        state = [buffer.clone() for buffer in bottleneck.buffers()]
        states.append([output.latents, output.commitment, *output.indices, *state])
    assert all(map(torch.equal, *states))


@pytest.mark.parametrize("levels", [(8, 5, 7, 4), (3, 256, 16), (5,) * 24])
def test_scalar_levels_are_those_of_the_library(levels: tuple[int, ...]) -> None:
    bottleneck = ScalarBottleneck(len(levels), levels)
    h = 3 * torch.randn(2, len(levels), 6, 5, generator=torch.Generator().manual_seed(0))
    output = bottleneck(h)
    if len(levels) < 24:  # its index is an int32, and a float32 before that
        latents, indices = FSQ(levels)(h)
        torch.testing.assert_close(output.latents, latents)
        assert torch.equal(output.indices[0], indices.long())
    assert output.indices[0].max() > 100
    assert torch.equal(bottleneck.latents_to_indices(output.latents)[0], output.indices[0])
    rounded = output.latents.bfloat16()
    assert torch.equal(bottleneck.latents_to_indices(rounded)[0], output.indices[0])
    assert output.commitment == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_goes_straight_through(kind: str) -> None:
    """From reconstruction to every parameter; codes are buffers, and none of them moves."""
    model = make_model(kind)
    before = codebook_state(model)
    output = model(images())
    output.sample.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert all(map(torch.equal, before, codebook_state(model)))
    assert [name for name, _ in model.named_parameters() if "codebook" in name] == []


def test_the_straight_gradient_is_that_of_the_latents() -> None:
    quantizer = VectorQuantizer(4, 8)
    h = torch.randn(1, 4, 3, 3, requires_grad=True)
    weight = torch.randn(1, 4, 3, 3)
    (quantizer(h).latents * weight).sum().backward()
    assert h.grad is not None
    torch.testing.assert_close(h.grad, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_the_commitment_moves_the_encoder_alone(kind: str) -> None:
    model = make_model(kind)
    commitment = model(images()).commitment
    if kind == "fsq":
        assert commitment == 0
        assert not commitment.requires_grad
        return
    assert commitment > 0
    commitment.backward()
    for name, parameter in model.named_parameters():
        is_moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert is_moved == name.startswith(("encoder.", "bottleneck.")), name


@pytest.mark.parametrize("kind", LEARNED)
def test_only_training_collects_and_taking_clears(kind: str) -> None:
    model = make_model(kind)
    model(images())
    assert all(quantizer.take_pending() is None for quantizer in model.quantizers)
    for quantizer in model.quantizers:
        quantizer.collecting = True
    model.eval()(images())
    assert all(quantizer.take_pending() is None for quantizer in model.quantizers)
    model.train()(images())
    second = model(images().flip(0))
    for quantizer, grid in zip(model.quantizers, second.indices, strict=True):
        vectors, indices = quantizer.take_pending()
        assert vectors.shape == (2 * grid.numel(), quantizer.codes.shape[1])
        assert vectors.dtype == torch.float32
        assert not vectors.requires_grad
        assert torch.equal(indices[grid.numel() :], grid.flatten())
        assert quantizer.take_pending() is None


def trained_quantizer(cosine: bool = False, restart_below: float = 0.0) -> VectorQuantizer:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(3, 6, cosine=cosine)
    quantizer.configure(decay=0.9, restart_below=restart_below)
    return quantizer


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("entries", [1 << 25, 20])
def test_an_update_is_one_step_of_the_running_means(
    cosine: bool, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against sums by hand (arXiv:1711.00937, equations 6-8), whole and in parts."""
    monkeypatch.setattr(codebooks, "_MAX_ENTRIES", entries)
    quantizer = trained_quantizer(cosine)
    assert not quantizer.initialised
    vectors, indices = torch.randn(40, 3), torch.randint(0, 6, (40,))
    vectors = F.normalize(vectors, dim=1) if cosine else vectors
    counts = torch.stack([(indices == k).sum() for k in range(6)]).float()
    sums = torch.stack([vectors[indices == k].sum(0) for k in range(6)])
    usage = 0.9 * quantizer.usage + 0.1 * counts
    means = 0.9 * quantizer.codebook.embed_avg[0] + 0.1 * sums
    smoothed = (usage + 1e-5) / (usage.sum() + 6e-5) * usage.sum()
    codes = means / smoothed[:, None]
    quantizer.update(vectors, indices)
    torch.testing.assert_close(quantizer.usage, usage)
    torch.testing.assert_close(quantizer.codebook.embed_avg[0], means)
    torch.testing.assert_close(quantizer.codes, F.normalize(codes, dim=1) if cosine else codes)
    assert quantizer.initialised


def test_an_update_pulls_codes_to_their_vectors() -> None:
    quantizer = trained_quantizer()
    centres = torch.randn(6, 3)
    vectors = centres.repeat_interleave(20, 0)
    indices = torch.arange(6).repeat_interleave(20)
    for _ in range(60):
        quantizer.update(vectors, indices)
    torch.testing.assert_close(quantizer.codes, centres, atol=1e-2, rtol=0)


@pytest.mark.parametrize("cosine", [False, True])
def test_a_dead_code_lives_again_only_with_restarts(cosine: bool) -> None:
    vectors = torch.randn(30, 3, generator=torch.Generator().manual_seed(2)) + 5
    used = torch.arange(30) % 4  # codes 4 and 5 never
    for restart_below in (0.0, 0.5):
        quantizer = trained_quantizer(cosine, restart_below)
        for _ in range(12):
            quantizer.update(vectors, used)
        expected = F.normalize(vectors, dim=1) if cosine else vectors
        distance = torch.cdist(quantizer.codes[4:], expected).amin(1)
        assert bool((distance < 0.05).all()) == (restart_below > 0)
        assert bool((quantizer.usage[4:] >= 0.5).all()) == (restart_below > 0)


def test_a_restarted_code_has_time_before_it_is_judged() -> None:
    quantizer = trained_quantizer(restart_below=0.5)
    vectors, used = torch.randn(30, 3), torch.arange(30) % 5
    quantizer.codebook.cluster_size[0, 5] = 0.1
    quantizer.update(vectors, used)
    revived = quantizer.codes[5]
    for _ in range(5):
        quantizer.update(vectors, used)
        torch.testing.assert_close(quantizer.codes[5], revived, atol=1e-3, rtol=1e-3)
    for _ in range(5):
        quantizer.update(vectors, used)
    assert quantizer.usage[5] > 0.5


@pytest.mark.parametrize("cosine", [False, True])
def test_clusters_are_a_better_start_than_chance(cosine: bool) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 16, cosine=cosine)
    h = torch.randn(16, 4)[torch.randint(0, 16, (1, 20, 20))].movedim(-1, 1)
    h = h + 0.05 * torch.randn_like(h)
    before = quantizer(h).commitment
    vectors = h.movedim(1, -1).flatten(0, 2)
    quantizer.initialise(vectors)
    assert quantizer.initialised
    assert quantizer(h).commitment < 0.5 * before
    if cosine:
        torch.testing.assert_close(quantizer.codes.norm(dim=1), torch.ones(16))
    quantizer.update(vectors, quantizer(h).indices.flatten())
    assert quantizer(h).commitment < 0.5 * before


def test_an_empty_cluster_becomes_a_vector() -> None:
    """The library leaves a code of zeros there."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, 4)
    vectors = torch.tensor([[3.0, 0], [0, 3]]).repeat(8, 1)
    quantizer.initialise(vectors)
    distances = torch.cdist(quantizer.codes, vectors[:2])
    assert distances.amin(1).max() < 1e-3
    assert distances.amin(0).max() < 1e-3


@pytest.mark.parametrize("frugal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind: str, frugal: bool, tmp_path: Path) -> None:
    """Also over meta tensors, which lack what is not stored."""
    model = make_model(kind).eval()
    for quantizer in model.quantizers:
        quantizer.initialise(torch.randn(80, quantizer.codes.shape[1]))
    model.save_pretrained(tmp_path)
    loaded = LatentAutoencoder.from_pretrained(
        tmp_path, use_safetensors=True, low_cpu_mem_usage=frugal
    )
    assert [quantizer.initialised for quantizer in loaded.quantizers] == [True] * len(
        model.quantizers
    )
    expected, found = model(images()), loaded(images())
    assert torch.equal(found.sample, expected.sample)
    assert all(map(torch.equal, found.indices, expected.indices))
    half = LatentAutoencoder.from_pretrained(
        tmp_path, torch_dtype=torch.bfloat16, low_cpu_mem_usage=frugal
    )
    encoded = half.encode(images().bfloat16())
    assert encoded.latents.dtype == torch.bfloat16
    assert torch.equal(half.indices_to_latents(encoded.indices), encoded.latents)
    plain = backbone.load_autoencoder(tmp_path)
    assert torch.equal(backbone.encode_raw(plain, images()), model.encode(images()).latents)


@pytest.mark.parametrize("kind", KINDS)
def test_pipelines_find_the_latents(kind: str) -> None:
    """By the function that all of diffusers copies; this copy needs no transformers."""
    encoded = make_model(kind).encode(images())
    assert isinstance(encoded, DiscreteEncoderOutput)
    assert torch.equal(retrieve_latents(encoded), encoded.latents)
    plain = make_model(kind).encode(images(), return_dict=False)
    assert torch.equal(plain[0], encoded.latents)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_and_slices_match_the_whole(kind: str) -> None:
    model = make_model(kind).eval().double()  # so that sums in another order round alike
    x = images(2, 272, 208).double()
    with torch.no_grad():
        whole = model.encode(x)
        sample = model.decode(whole.latents).sample
        model.tile_cells = 6
        model.enable_tiling()
        model.enable_slicing()
        tiled = model.encode(x)
        assert all(map(torch.equal, tiled.indices, whole.indices))
        assert torch.equal(tiled.latents, whole.latents)
        torch.testing.assert_close(model.decode(whole.latents).sample, sample, atol=1e-9, rtol=0)


def test_tiles_of_whole_encodings_see_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone tiles `encode` itself, with what the bottleneck sees in the margin."""
    model = make_model("vq2").eval()
    pixels = ((images(1, 400, 304)[0] + 1) * 127.5).byte().movedim(0, -1).numpy()
    with torch.no_grad():
        whole = backbone.encode_pixels(model, pixels)
        monkeypatch.setattr(backbone, "TILE_CELLS", 8)
        tiled = backbone.encode_pixels(model, pixels)
    assert (whole == tiled).all()


@pytest.mark.parametrize("middle", [16, 17])
def test_the_margin_of_two_levels_is_enough_and_not_idle(middle: int) -> None:
    model = make_model("vq2")
    x = images(1, 8 * 34, 8 * 34).requires_grad_()
    model.encode(x).latents[0, :, middle, middle].sum().backward()
    assert x.grad is not None
    columns = x.grad[0].abs().amax((0, 1)).unflatten(0, (34, 8)).amax(1) > 0
    reach = int(columns.nonzero().flatten().sub(middle).abs().max())
    margin = model.encoder_margin // 8
    assert margin % 2 == 0
    assert margin - 2 <= reach <= margin


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_leaves_the_bottleneck_alone(kind: str) -> None:
    """Quantised once a step, so that every vector is counted once."""
    model = make_model(kind)
    calls: list[int] = []
    model.bottleneck.register_forward_hook(lambda *_: calls.append(1))
    model.enable_gradient_checkpointing()
    for quantizer in model.quantizers:
        quantizer.collecting = True
    output = model(images())
    (output.sample.square().mean() + output.commitment).backward()
    assert calls == [1]
    if kind != "fsq":
        pending = [quantizer.take_pending() for quantizer in model.quantizers]
        assert [len(vectors) for vectors, _ in pending] == list(map(torch.numel, output.indices))


def test_a_codebook_learns_a_batch() -> None:
    """Encoder, decoder and codes together: the error falls, and most codes are used."""
    torch.manual_seed(0)
    model = LatentAutoencoder(**TINY, **KINDS["vq"]).train()
    (quantizer,) = model.quantizers
    quantizer.collecting = True
    quantizer.configure(decay=0.9, restart_below=0.2)
    x = F.interpolate(images(4, 8, 8), 64, mode="bilinear")
    model(x)
    quantizer.initialise(quantizer.take_pending()[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(120):
        output = model(x)
        errors.append(F.mse_loss(output.sample, x))
        (errors[-1] + 0.25 * output.commitment).backward()
        optimizer.step()
        optimizer.zero_grad()
        quantizer.update(*quantizer.take_pending())
    assert errors[-1] < 0.2 * errors[0]
    assert len(output.indices[0].unique()) > 16


def test_settings_that_do_not_fit_are_refused() -> None:
    cases = [
        ({"bottleneck": "lfq"}, "expected gaussian, vq, fsq or vq2"),
        ({"bottleneck": "fsq", "latent_channels": 8}, "found latent_channels 8 and 4 fsq_levels"),
        ({"bottleneck": "fsq", "fsq_levels": (2, 8, 8, 8)}, "expected 3 to 256 levels"),
        ({"bottleneck": "vq2", "latent_channels": 5}, "expected an even number"),
        ({"bottleneck": "vq", "codebook_size": 1}, "expected at least 2 codes"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            LatentAutoencoder(**TINY, **settings)
    model = make_model("vq2")
    with pytest.raises(ValueError, match="expected sides that are multiples of 16"):
        model.encode(images(1, 64, 72))
    with pytest.raises(ValueError, match="found 1 grids of indices, expected a tuple of 2"):
        model.indices_to_latents((torch.zeros(1, 4, 4, dtype=torch.int64),))
    with pytest.raises(ValueError, match="latents have no indices"):
        LatentAutoencoder(**TINY).latents_to_indices(torch.zeros(1, 4, 2, 2))
