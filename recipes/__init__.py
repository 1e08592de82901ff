"""Recipes: how the models were made, and `make audit`."""
