"""EditScope engine."""
