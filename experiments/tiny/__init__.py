"""The generated picture world and the small model that lives in it."""
