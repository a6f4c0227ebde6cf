"""Checkpoint files and state dicts ⇄ parameter trees, one rule table per layout."""
