"""A look at the cluster for ``tokenward check``: would a pod's token be verified now?"""

from __future__ import annotations

from daemon.config.settings import Kubernetes, ServiceAccount, Verification
from daemon.domain.errors import VerificationUnavailableError
from daemon.sidecar.service_accounts import Cluster
from daemon.sidecar.signing_keys import read_key_set
from daemon.sidecar.token_reviews import read_review

# Of no account, so it is nobody's secret: the API server is asked whether it answers us at all.
_NO_TOKEN = "none"
_NOBODY = ServiceAccount("none", "none")


async def try_cluster(kubernetes: Kubernetes, cluster: Cluster) -> str:
    """Return in words how tokens are verified, having tried it with the cluster.

    Raises:
        VerificationUnavailableError: it cannot be done now.
    """
    if kubernetes.verification is Verification.TOKEN_REVIEW:
        body = await cluster.review(kubernetes, _NO_TOKEN)
        read_review(body, kubernetes.audience, _NOBODY)
        return f"{kubernetes.api_server} reviews service account tokens for us"
    try:
        keys = read_key_set(await cluster.key_set(kubernetes))
    except ValueError as error:
        raise VerificationUnavailableError(f"the document with the keys {error}") from error
    return f"service account tokens are verified with {len(keys)} keys of the cluster"
