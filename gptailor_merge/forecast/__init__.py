"""What a search will take, reckoned before it begins."""
