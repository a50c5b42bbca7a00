"""lm-eval's tasks as objectives."""
