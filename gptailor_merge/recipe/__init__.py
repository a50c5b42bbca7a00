"""The language of recipes: YAML documents, plans, edits, and how they are put into words. Knows no weights."""
