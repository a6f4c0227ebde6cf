"""Task families: one file says where a family's inputs, splits, classes and heads come from."""
