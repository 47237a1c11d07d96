"""Studies: one option of a conversion varied, all that it changes measured on any model and data."""
