"""A run goes to the Hub, and a published model comes back."""
