"""Draws the figures of a run's page with plotly."""
