"""Explore: where a fact lives in a model, what it would say at every layer, and what an edit changed."""
