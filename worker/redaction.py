"""Takes credentials out of text before anybody reads it. Knows nothing of where the text goes."""

import re

# user:password@ in a URL. The password may hold anything but white space and quotes, '@' and '/' too, so the match is
# greedy up to the last '@' before one of those.
_USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s\"'<>]*@", re.IGNORECASE)
_QUERY_SECRET = re.compile(
    r"(?P<key>[?&;](?:[\w-]*(?:pass|pwd|secret|token|auth|signature|api_?key)[\w-]*|key|sig|user(?:name)?)=)[^&;\s\"'<>]*",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` with the credentials of every URL in it replaced by ***: user and password, and secrets in the query."""
    text = _USERINFO.sub(r"\g<scheme>***@", text)
    return _QUERY_SECRET.sub(r"\g<key>***", text)
