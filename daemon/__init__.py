"""tokenward keeps OAuth 2.0 tokens fresh and hands them to services on localhost.

The stages of a token's life, and the file that holds each:

configure   ``daemon.config.loading``       YAML, environment and flags become frozen settings
authorize   ``daemon.oauth.authorization``  a person is sent to the provider
callback    ``daemon.oauth.redirection``    the person comes back with a code
exchange    ``daemon.oauth.token_endpoint`` a code or a refresh token becomes tokens
store       ``daemon.persistence``          encrypted, in PostgreSQL
schedule    ``daemon.refresh.policy``       when the next refresh is due
refresh     ``daemon.refresh.refresher``    claim, send, commit, publish
serve       ``daemon.sidecar.api``          the current token, from memory
"""

__version__ = "0.1.0"
