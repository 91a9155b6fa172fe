"""The sentences of failure pages: one entry for each code of ours, and for each a provider sends.

Addressed to the person in front of the browser, who has not read a specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_AGAIN = "Go back to where you started and connect again."
_OPERATOR = "Tell the operator of this service, and give them the code and the reference below."
_LATER = "Wait a few minutes, then go back to where you started and connect again."


@dataclass(frozen=True, slots=True)
class Words:
    """What a failure page says; ``{provider}`` stands for the provider's name."""

    title: str
    happened: str
    action: str
    status: int = 400


OURS: Mapping[str, Words] = MappingProxyType(
    {
        "invalid_callback": Words(
            "That answer could not be read",
            "The address that brought you here does not hold a complete, well-formed answer of a"
            " provider. Nothing was connected.",
            _AGAIN,
        ),
        "unknown_state": Words(
            "This authorization is over",
            "It was already used, took longer than ten minutes, or was not started here. Each one"
            " works once. If you reloaded the page, the first answer may have been accepted.",
            "Look whether the connection works. If it does not, go back to where you started and"
            " connect again.",
        ),
        "expired_state": Words(
            "That took too long",
            "An authorization must be finished within ten minutes of pressing Connect. Nothing was"
            " connected.",
            _AGAIN,
        ),
        "other_browser": Words(
            "Started in another browser",
            "The answer of {provider} arrived in a browser that did not start this authorization,"
            " or in one that refuses cookies. To be safe, nothing was connected.",
            "Open the connect link and finish in the same browser, with cookies allowed for this"
            " site. If somebody sent you this address, do not use it.",
        ),
        "issuer_mismatch": Words(
            "The answer came from somebody else",
            "The answer does not say that it comes from {provider}. To be safe, it was thrown away"
            " and nothing was connected.",
            "Go back to where you started and connect again. If it happens again, tell the"
            " operator of this service, and give them the code and the reference below.",
        ),
        "provider_not_configured": Words(
            "This provider is not set up",
            "The provider {provider} is not in this service's configuration, or its settings have"
            " changed since you started.",
            _OPERATOR,
        ),
        "provider_unavailable": Words(
            "{provider} cannot be used right now",
            "This service could not learn from {provider} where to send you, or how to check an"
            " answer. Nothing was connected.",
            "Wait a moment, then open the connect link again.",
            status=503,
        ),
        "exchange_not_sent": Words(
            "{provider} could not be reached",
            "You gave your permission, but this service could not reach {provider} to finish."
            " Nothing was connected.",
            _LATER,
        ),
        "exchange_in_doubt": Words(
            "{provider} did not answer clearly",
            "You gave your permission, but no readable answer of {provider} reached this service."
            " A code is sent only once, so this authorization cannot be continued.",
            _AGAIN,
        ),
        "exchange_refused": Words(
            "{provider} refused to finish",
            "You gave your permission, but {provider} did not hand out tokens. Nothing was"
            " connected.",
            _LATER,
        ),
        "connection_gone": Words(
            "This connection no longer exists",
            "The connection was removed while you were at {provider}. Nothing was stored.",
            _AGAIN,
        ),
        "disconnected": Words(
            "This connection was disconnected",
            "It was disconnected while you were at {provider}. Nothing was stored, and what"
            " {provider} granted is given back.",
            _AGAIN,
        ),
        "other_account": Words(
            "That is another account",
            "You signed in at {provider} with another account than the one that this connection is"
            " for. Nothing was changed.",
            "Sign in at {provider} with the account named below and connect again. If you meant to"
            " add an account, ask for a new connection.",
        ),
        "account_unknown": Words(
            "Which account that is could not be told",
            "You gave your permission at {provider}, but {provider} does not say to whom it"
            " belongs, and this connection is for a certain account. Nothing was changed.",
            "Connect again, with the same account, and allow everything that {provider} asks for."
            " If that does not help, tell the operator of this service, and give them the code"
            " and the reference below.",
        ),
        "connected_elsewhere": Words(
            "That account is connected already",
            "The account that you chose at {provider} belongs to another connection of this"
            " service, which is not yours to change. Nothing was connected.",
            "Connect again with another account. If you need this one, tell the operator of this"
            " service, and give them the code and the reference below.",
        ),
        "fields_unusable": Words(
            "Something is missing",
            "Where {provider} is to be found depends on a value, such as a region or a subdomain,"
            " that is missing or cannot be used. Nothing was connected.",
            "Open the connect link again and fill in what it asks for. If it asks for nothing,"
            " tell who gave you the link.",
        ),
        "not_stored": Words(
            "The result could not be stored",
            "{provider} accepted, but this service could not save the result.",
            _LATER,
        ),
        "journal_unavailable": Words(
            "Not possible right now",
            "This service has no disk space for the result, so it did not ask for one.",
            "Tell its operators; then start again with a new link.",
            status=503,
        ),
        "database_unavailable": Words(
            "Not possible right now",
            "This service cannot reach its database. Nothing was sent and nothing is lost.",
            "Wait a moment and reload this page.",
            status=503,
        ),
        "link_expired": Words(
            "This link does not work any more",
            "Connect links work for 30 minutes and until the connection is made. This one has"
            " expired, was used, or was not copied completely.",
            "Ask for a new link where you got this one.",
            status=404,
        ),
        "cross_site_request": Words(
            "That request came from another site",
            "The Connect button was not pressed on a page of this service.",
            "Open the connect link yourself and press Connect there.",
            status=403,
        ),
        "internal_error": Words(
            "Something went wrong here",
            "This service met an error that it did not expect.",
            _OPERATOR,
            status=500,
        ),
    }
)

PROVIDERS: Mapping[str, Words] = MappingProxyType(
    {
        # RFC 6749 4.1.2.1
        "access_denied": Words(
            "Access was not granted",
            "You or {provider} declined the request. Nothing was connected.",
            "If that was not intended, connect again and approve the request. If {provider} does"
            " not let you, ask an administrator of your account there.",
        ),
        "invalid_request": Words(
            "{provider} did not accept the request",
            "{provider} says that the request is incomplete or has a value it does not know.",
            _OPERATOR,
        ),
        "unauthorized_client": Words(
            "This service may not ask {provider}",
            "{provider} does not allow this service to obtain tokens in this way.",
            _OPERATOR,
        ),
        "unsupported_response_type": Words(
            "{provider} does not support this kind of request",
            "{provider} does not hand out authorization codes to this service.",
            _OPERATOR,
        ),
        "invalid_scope": Words(
            "{provider} does not know these permissions",
            "At least one of the permissions asked for does not exist at {provider}, or this"
            " service may not ask for it.",
            _OPERATOR,
        ),
        "server_error": Words(
            "{provider} had an internal error",
            "Something went wrong at {provider}. Nothing was connected.",
            _LATER,
        ),
        "temporarily_unavailable": Words(
            "{provider} is busy",
            "{provider} is overloaded or under maintenance. Nothing was connected.",
            _LATER,
        ),
        # OpenID Connect Core 3.1.2.6
        "interaction_required": Words(
            "{provider} needs to ask you something",
            "{provider} could not go on without showing you a page, and was told not to.",
            "Sign in at {provider}, then go back to where you started and connect again.",
        ),
        "login_required": Words(
            "You are not signed in at {provider}",
            "{provider} could not go on without your sign-in, and was told not to ask for it.",
            "Sign in at {provider}, then go back to where you started and connect again.",
        ),
        "account_selection_required": Words(
            "{provider} does not know which account to use",
            "You are signed in at {provider} with more than one account.",
            "Sign out of the other accounts at {provider}, then connect again.",
        ),
        "consent_required": Words(
            "{provider} needs your consent",
            "You, or an administrator of your account, have not yet allowed what was asked for.",
            "Connect again and approve the request. If {provider} does not let you, ask an"
            " administrator of your account there.",
        ),
        "invalid_request_uri": Words(
            "{provider} could not read the request",
            "{provider} could not fetch the request, or it is no longer valid.",
            _OPERATOR,
        ),
        "invalid_request_object": Words(
            "{provider} could not read the request",
            "{provider} says that the signed request is not valid.",
            _OPERATOR,
        ),
        "request_not_supported": Words(
            "{provider} does not support this kind of request",
            "{provider} does not accept requests that are sent as a signed object.",
            _OPERATOR,
        ),
        "request_uri_not_supported": Words(
            "{provider} does not support this kind of request",
            "{provider} does not accept requests that are sent by reference.",
            _OPERATOR,
        ),
        "registration_not_supported": Words(
            "{provider} does not support this kind of request",
            "{provider} does not accept a registration inside a request.",
            _OPERATOR,
        ),
        # OpenID Connect Core Unmet Authentication Requirements, RFC 8707 2
        "unmet_authentication_requirements": Words(
            "A stronger sign-in is needed",
            "The way you signed in at {provider} does not meet what was asked for.",
            "Connect again and use a stronger way to sign in, such as a second factor.",
        ),
        "invalid_target": Words(
            "{provider} does not know what is to be accessed",
            "{provider} does not know the resource that this service asks for.",
            _OPERATOR,
        ),
        # RFC 6749 5.2, from the token endpoint
        "invalid_grant": Words(
            "The code was not accepted",
            "{provider} says that the code which came with your answer has expired, was used"
            " before, or belongs to another request.",
            _AGAIN,
        ),
        "invalid_client": Words(
            "{provider} does not accept this service",
            "You gave your permission, but {provider} did not accept this service's client id or"
            " secret.",
            _OPERATOR,
        ),
        "unsupported_grant_type": Words(
            "{provider} does not support this kind of request",
            "{provider} does not exchange authorization codes at this token endpoint.",
            _OPERATOR,
        ),
        # Not standard, yet common
        "redirect_uri_mismatch": Words(
            "The redirect URI is not registered",
            "{provider} does not know the address it is asked to send you back to.",
            "Tell the operator of this service: the redirect URI to register at {provider} is this"
            " service's public_url with /callback behind it.",
        ),
        "application_suspended": Words(
            "{provider} has suspended this service",
            "{provider} no longer accepts the application under which this service is registered.",
            _OPERATOR,
        ),
    }
)

UNKNOWN = Words(
    "{provider} reported an error",
    "{provider} ended the authorization with an error that this service does not know. Nothing was"
    " connected.",
    "Go back to where you started and connect again. If it happens again, tell the operator of"
    " this service, and give them the code and the reference below.",
)
