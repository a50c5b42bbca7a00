"""A thin layer over mergekit: merge methods, their arithmetic, chat templates, checkpoint conversions."""
