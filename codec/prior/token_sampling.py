"""Sampling token after token with transformers' cache and logits processors.

The loop is our own for one reason: each image draws from a generator of its own seed, so that it is
the same whatever it is sampled together with. One uniform number a token picks from the cumulative
probabilities.

Legend: B images, T tokens of an image, K codes of a codebook.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codec.prior.directory import PriorError
from codec.prior.token_layout import Segment, TokenLayout
from codec.prior.token_model import import_transformers


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """How tokens are picked.

    Attributes:
        temperature: Logits are divided by it.
        top_k: Only so many likeliest codes are picked from; None for all.
        top_p: Only the likeliest codes that together have this probability; None for all.
        guidance: w of unconditional + w * (conditional - unconditional) logits (classifier-free
            guidance, arXiv:2207.12598); 1 is none.

    Raises:
        PriorError: A value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise PriorError(
                f"found temperature {self.temperature:g}, expected a number above 0; for the "
                "likeliest codes take top_k=1"
            )
        if self.top_k is not None and self.top_k < 1:
            raise PriorError(f"found top_k {self.top_k}, expected at least 1, or none for all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise PriorError(f"found top_p {self.top_p:g}, expected a number above 0, at most 1")
        if not 1 <= self.guidance < float("inf"):
            raise PriorError(
                f"found guidance {self.guidance:g}, expected at least 1, which is none"
            )

    @property
    def is_guided(self) -> bool:
        """Whether the null class is asked too."""
        return self.guidance > 1

    def processors(self) -> Any:
        """Returns transformers' LogitsProcessorList; guidance wants scores of twice B rows."""
        generation = import_transformers().generation.logits_process
        chosen = generation.LogitsProcessorList()
        if self.is_guided:
            chosen.append(generation.ClassifierFreeGuidanceLogitsProcessor(self.guidance))
        if self.temperature != 1:
            chosen.append(generation.TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            chosen.append(generation.TopKLogitsWarper(self.top_k))
        if self.top_p is not None and self.top_p < 1:
            chosen.append(generation.TopPLogitsWarper(float(self.top_p)))
        return chosen


def seeded_uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """Returns float64 (B, count) in [0, 1), each row from a CPU generator of its own seed."""
    rows = [
        torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows)


@torch.no_grad()
def sample_tokens(
    model: Any,
    layout: TokenLayout,
    class_tokens: Tensor,
    uniforms: Tensor,
    choice: TokenChoice,
    *,
    use_cache: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> Tensor:
    """Samples the tokens of several images at once.

    Args:
        model: As `codec.prior.token_model.load_model` gave it.
        layout: Of the sequences.
        class_tokens: int64 (B,), on the model's device.
        uniforms: float64 (B, T) on the CPU, from `seeded_uniforms`.
        choice: How tokens are picked.
        use_cache: Keep keys and values of earlier tokens; else each token runs all before it again.
        advance: Is called after each token.

    Returns:
        int64 (B, T) on the model's device.
    """
    null = torch.full_like(class_tokens, layout.class_token(None))
    prompt = torch.cat([class_tokens, null]) if choice.is_guided else class_tokens
    copies = 2 if choice.is_guided else 1
    cache = import_transformers().DynamicCache() if use_cache else None
    processors = choice.processors()
    tokens = class_tokens.new_empty((len(class_tokens), 0))
    inputs = prompt[:, None]
    for part in layout.segments:
        for place in range(part.start, part.stop):
            # The cache's name differs between releases (past_key_values, then cache): by place.
            output = model(inputs, cache, use_cache=use_cache, logits_to_keep=1)
            scores = _own_scores(output.logits[:, -1], part)
            found = _pick(processors(tokens, scores), uniforms[:, place])
            found = (found + part.first).to(tokens.device)[:, None]
            tokens = torch.cat([tokens, found], dim=1)
            latest = found.repeat(copies, 1)
            inputs = latest if use_cache else torch.cat([inputs, latest], dim=1)
            advance()
    return tokens


def _own_scores(logits: Tensor, part: Segment) -> Tensor:
    """Float32 logits of the codes that a place can have."""
    return logits[:, part.first : part.first + part.num_codes].float()


def _pick(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Codes (B,) where the cumulative probabilities of scores (B, K) pass uniforms (B,)."""
    cumulative = scores.double().softmax(dim=-1).cpu().cumsum(dim=-1)
    total = cumulative[:, -1]
    below = torch.nextafter(total, torch.zeros_like(total))
    goal = torch.minimum(uniforms * total, below)  # a code without probability is never reached
    found: Tensor = torch.searchsorted(cumulative, goal[:, None], right=True)[:, 0]
    return found
