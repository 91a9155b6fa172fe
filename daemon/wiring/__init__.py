"""Composition root: builds every part, owns every task, knows the order of start and stop."""
