"""Recognise URLs, read those in the environment, and remove secrets before they are shown."""

import os
import re

from cifarctl.errors import UsageError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# Query parameters with such a name are not shown: ?access_token=…, &X-Amz-Signature=…, &sig=…
_SECRET = re.compile(
    r"([?&;#][^=&;#]*(?:auth|cred|key|passw|pwd|secret|session|sig|token)[^=&;#]*=)[^&;#]*", re.IGNORECASE
)
_HOST_AND_PORT = re.compile(r"(?:[^:@/?#\[\]]*|\[[^@/?#\]]*\])(?::\d*)?(?=[/?#]|$)")


def is_url(source: str) -> bool:
    """True for an http or https URL, False for a path. Raises UsageError for any other URL."""
    scheme = _SCHEME.match(source)
    if scheme and scheme[0].lower() not in ("http://", "https://"):
        raise UsageError(f"{redact(source)}: no http or https URL")
    return scheme is not None


def mirrors_from_environment() -> list[str]:
    """The URLs in $CIFARCTL_MIRRORS, separated by spaces or commas. Raises UsageError on anything else."""
    urls = os.environ.get("CIFARCTL_MIRRORS", "").replace(",", " ").split()
    for url in urls:
        if _SCHEME.match(url) is None:
            raise UsageError(f"CIFARCTL_MIRRORS: {url.rpartition('@')[2]}: no http or https URL")
        try:
            is_url(url)
        except UsageError as error:
            raise UsageError(f"CIFARCTL_MIRRORS: {error}") from None
    return urls


def redact(source: str) -> str:
    """The URL without user, password and secret parameters, for messages and results. A path stays as it is."""
    scheme = _SCHEME.match(source)
    if scheme is None:
        return source
    rest = source[scheme.end() :]
    # A password may contain a "/" or "@" that should have been escaped. So everything before the last "@" is hidden,
    # unless the URL begins with a host and the "@" is in the path.
    if "@" in rest and not _HOST_AND_PORT.match(rest):
        rest = "***@" + rest.rpartition("@")[2]
    return scheme[0] + _SECRET.sub(r"\1***", rest)
