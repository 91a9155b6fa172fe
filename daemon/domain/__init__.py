"""Nouns and rules of tokenward. No network, no disk, no framework: values, and functions of values and a time."""
