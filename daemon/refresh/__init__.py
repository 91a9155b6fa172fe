"""Refreshing: when (policy), by whom (claims), how (refresher), how many at once, and the cache."""
