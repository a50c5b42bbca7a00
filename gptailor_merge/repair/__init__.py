"""Makes up for removed layers in closed form."""
