"""Distances between sets of images: kernel and Frechet distances of features."""
