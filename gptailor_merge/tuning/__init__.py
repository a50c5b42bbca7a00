"""Fits merge weights and the gains of norms by gradient."""
