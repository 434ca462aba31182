"""Training the entropy model: its differentiable twin, the trainer, the way to integers."""
