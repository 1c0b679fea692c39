"""The rules of `export.lint`, by what they look at."""
