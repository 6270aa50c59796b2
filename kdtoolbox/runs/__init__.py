"""Prepare one run: flags, work dir, and checks before the first iteration."""
