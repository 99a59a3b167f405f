"""Commented example configurations, one per kind of user."""
