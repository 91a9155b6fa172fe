"""A local, certified OAuth 2.0 authorization server for the demonstration and the tests.

npm ``oidc-provider``, installed once by Node's own npm and run as a child that cannot outlive us.
"""
