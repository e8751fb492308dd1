"""Optimizers and learning rate schedules."""

NAMES = ("sgd",)
