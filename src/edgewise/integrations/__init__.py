"""Warmups and monitors in other frameworks' trainers: a file for each, which imports that framework alone."""
