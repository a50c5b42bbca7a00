"""Holds the commands; each parses its options, calls one function of the API, and prints the result."""
