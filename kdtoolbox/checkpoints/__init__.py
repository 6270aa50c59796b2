"""Find, read, check and write checkpoint files."""
