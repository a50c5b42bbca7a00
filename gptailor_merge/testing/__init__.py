"""Contract tests for extensions: inherit a suite in your own tests and supply what it asks for."""
