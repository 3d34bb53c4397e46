"""Edits that leave EditScope, and edits that come back: adapters, merged models and our own files, each one checked."""
