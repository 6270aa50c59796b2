"""What one run needs around its Runner: flags, work dir, checks before the start."""
