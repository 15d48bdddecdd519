"""Warmups and monitors inside other frameworks. `make integrations` runs what is skipped where one is not installed."""
