"""The thin layer over mergekit: its merge methods, their arithmetic, chat templates, checkpoint conversions."""
