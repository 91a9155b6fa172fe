"""Nouns and rules: values, and functions of values and a time.

No network, no disk, no framework.
"""
