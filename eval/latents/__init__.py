"""Measures of latents: statistics, rate, codebooks, likelihood bounds, pictures."""
