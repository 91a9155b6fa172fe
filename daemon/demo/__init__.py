"""`tokenward demo`: the daemon beside a local authorization server, ready to click through."""
