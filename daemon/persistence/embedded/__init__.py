"""The embedded PostgreSQL: found, made, run as a user it accepts, and kept alive (``server``)."""
