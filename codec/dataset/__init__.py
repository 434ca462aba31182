"""The dataset job: sources of images, their pixels, latents, and the shards that hold them."""
