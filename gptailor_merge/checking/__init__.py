"""Is a directory a sound model?"""
