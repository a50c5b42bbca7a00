"""What a tailored model is. Knows no weights."""
