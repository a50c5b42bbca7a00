"""The loop that proposes, judges and remembers."""
