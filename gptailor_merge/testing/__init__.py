"""Contract suites that extensions inherit."""
