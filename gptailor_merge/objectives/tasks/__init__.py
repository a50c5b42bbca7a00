"""The kind `task`: metrics of lm-eval's tasks."""
