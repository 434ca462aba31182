"""Training priors over latents: what they learn from, the objective, the steps, the figures."""
