"""Bytes and operations of what a model would do, counted before any weight is loaded."""
