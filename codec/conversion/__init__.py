"""Models in other forms: original checkpoints as diffusers directories, statistics as weights."""
