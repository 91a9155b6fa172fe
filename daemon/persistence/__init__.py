"""What outlives the process: PostgreSQL, its migrations, and encryption at rest."""
