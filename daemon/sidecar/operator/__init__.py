"""The operator pages at ``/`` of the api listener: server-rendered, for who has a caller key."""
