"""The network of a token prior: transformers' GPT-2, made, loaded and asked for likelihoods.

Each place of the sequence has a learned position of its own, so the network knows row and column.
What is predicted at a place are the codes of its codebook alone: classes and other codebooks' codes
get no probability, so likelihoods over codes are exact.

Legend: B images, T tokens of an image, V vocabulary.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from codec.console import needs_extra
from codec.identity import CONFIG_FILE, read_json
from codec.prior.directory import PriorError
from codec.prior.token_layout import TokenLayout

WEIGHTS_FILE = "model.safetensors"
MAX_WIDTH = 1 << 14
MAX_LAYERS = 1 << 8
NULL_CLASS = "has_null_class"
"""Entry of config.json: whether the null class was trained beside the others."""


def import_transformers() -> Any:
    """Returns the package.

    Raises:
        MissingExtraError: It is not installed.
    """
    with needs_extra("prior", {"transformers"}):
        import transformers
    return transformers


def new_model(
    layout: TokenLayout,
    *,
    width: int,
    layers: int,
    heads: int,
    dropout: float = 0.0,
    has_null_class: bool = True,
) -> Any:
    """Makes an untrained GPT2LMHeadModel from torch's present random state.

    Args:
        layout: Of the sequences.
        width: Of the residual stream; a multiple of heads.
        layers: Blocks.
        heads: Of attention.
        dropout: Share of what blocks and embeddings give that training leaves out.
        has_null_class: Whether the null class is going to be trained.
    """
    transformers = import_transformers()
    config = transformers.GPT2Config(
        vocab_size=layout.vocabulary,
        n_positions=layout.length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu",
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=0.0,  # a fifth of the time on a CPU, for what the other two do as well
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,  # what a checkpoint stores once it can restore once
        use_cache=True,
        **{NULL_CLASS: has_null_class},
    )
    return transformers.GPT2LMHeadModel(config)


def load_model(
    directory: Path, layout: TokenLayout, device: torch.device, dtype: torch.dtype
) -> Any:
    """Loads the model of a prior's directory, from safetensors, in evaluation mode.

    Raises:
        PriorError: A part is missing or damaged, or of another model than the layout's.
        MissingExtraError: transformers is not installed.
    """
    _check_config(directory, layout)
    transformers = import_transformers()
    with _quietly(transformers):
        try:
            model, report = transformers.GPT2LMHeadModel.from_pretrained(
                directory,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            raise _unfit(directory, " ".join(str(error).split())[:300]) from error
    lacking = [*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]]
    if lacking:
        raise _unfit(directory, f"{lacking[0]} and {len(lacking) - 1} others do not fit")
    return model.to(device, dtype).eval().requires_grad_(False)


def save_model(model: Any, directory: Path) -> None:
    """Writes config.json and model.safetensors as transformers does, in the model's dtype."""
    with _quietly(import_transformers()):
        model.save_pretrained(directory)


def sequence_bits(
    model: Any, layout: TokenLayout, tokens: Tensor, class_tokens: Tensor, dtype: torch.dtype
) -> Tensor:
    """Returns -log2 p of each token given its class and the tokens before it.

    Args:
        model: As `new_model` or `load_model` gave it.
        layout: Of the sequences.
        tokens: int64 (B, T).
        class_tokens: int64 (B,) from `TokenLayout.class_token`.
        dtype: Of the sum over the vocabulary; float64 makes it exact.

    Returns:
        (B, T) bits.
    """
    inputs = torch.cat([class_tokens[:, None], tokens[:, :-1]], dim=1)
    logits = model(inputs, use_cache=False).logits
    parts = []
    for part in layout.segments:
        places = slice(part.start, part.stop)
        own = logits[:, places, part.first : part.first + part.num_codes].to(dtype)
        targets = tokens[:, places] - part.first
        nats = functional.cross_entropy(
            own.flatten(0, 1), targets.flatten(), reduction="none"
        ).view_as(targets)
        parts.append(nats / math.log(2))
    return torch.cat(parts, dim=1)


def _check_config(directory: Path, layout: TokenLayout) -> None:
    """Refuses what is no GPT-2 of a layout, before anything large is allocated."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise PriorError(
                f"found no {name} in {directory}, expected what latent-codec-train export makes of "
                "a token prior's run"
            )
    config = read_json(directory / CONFIG_FILE)
    wanted = {
        "model_type": "gpt2",
        "vocab_size": layout.vocabulary,
        "n_positions": layout.length,
        "tie_word_embeddings": False,
    }
    for key, value in wanted.items():
        if config.get(key) != value:
            raise _unfit(directory, f"found {key} {config.get(key)!r}, expected {value!r}")
    for key, most in (("n_embd", MAX_WIDTH), ("n_layer", MAX_LAYERS), ("n_head", MAX_WIDTH)):
        value = config.get(key)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise _unfit(directory, f"found {key} {value!r}, expected 1 to {most}")


def _unfit(directory: Path, reason: str) -> PriorError:
    return PriorError(
        f"found a token prior in {directory} that does not fit its codec and classes or is "
        f"damaged ({reason}); export it again"
    )


@contextlib.contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """No progress bar and no report of transformers' own: errors here say what is wrong."""
    log = transformers.utils.logging
    had_bar, verbosity = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if had_bar:
            log.enable_progress_bar()
