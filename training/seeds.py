"""Generators of random numbers that depend on a seed and a place in a run alone."""

import torch


def generator_of(seed: int, *place: int) -> torch.Generator:
    """A generator for one place of a run, such as a step: the same whatever was drawn before, here or elsewhere."""
    mixed = seed & 0xFFFFFFFFFFFFFFFF
    for number in place:  # splitmix64
        mixed = (mixed + 0x9E3779B97F4A7C15 * (number + 1)) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed)
