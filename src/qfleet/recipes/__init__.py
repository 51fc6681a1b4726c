"""Recipes that come with qfleet: one TOML file each, its first comment line its summary."""
