"""Classifying many texts with early exit."""
