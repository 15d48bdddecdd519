"""Edgewise in the training frameworks: each module imports its framework alone."""
