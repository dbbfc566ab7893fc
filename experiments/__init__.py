"""Sweeps: from one TOML file to a folder of finished runs."""
