"""The command line (contract 7): it talks to the api listener, or to the database itself.

``commands`` names everything; what a command does is in a module of its own that is imported
when it runs, because a token on a command line should not wait for what only the daemon needs.
"""
