"""The language of recipes: YAML documents, plans, edits and their wording. Knows no weights."""
