"""What is seen from outside: one log line and one count for each event, and never a secret."""
