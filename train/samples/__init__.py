"""Where training samples come from: sources of images, crops, loaders."""
