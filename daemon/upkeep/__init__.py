"""What is done for connections beside refreshing them: test, revoke, tell others."""
