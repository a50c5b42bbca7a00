"""Search configs that are written for users, from nothing but models and texts."""
