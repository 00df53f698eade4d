"""Frames on disk: one reader a layout."""
