"""One file per algorithm: its config section, its network head and its loss. Found by module name. Floor 3."""
