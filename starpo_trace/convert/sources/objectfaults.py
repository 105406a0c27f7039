"""What boto3 says went wrong -> what is wrong, and what to do, in one line."""

from typing import Any, Final

_CREDENTIALS: Final = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SKIP_SIGNATURE=true "
    "for a public bucket)"
)
_OF_ERROR: Final = (
    ("ProfileNotFound", "{said}; " + _CREDENTIALS),
    ("PartialCredentialsError", "{said}; " + _CREDENTIALS),
    ("NoCredentialsError", "no credentials were found; " + _CREDENTIALS),
    ("SSOError", "no credentials could be had ({said}); aws sso login, or " + _CREDENTIALS),
    ("CredentialRetrievalError", "no credentials could be had ({said}); " + _CREDENTIALS),
    (
        "SSLError",
        "no trusted connection{there} ({said}); check AWS_ENDPOINT_URL and AWS_CA_BUNDLE",
    ),
    (
        "HTTPClientError",
        "no whole answer{there} ({said}); check the network, HTTPS_PROXY and AWS_ENDPOINT_URL, "
        "then run it again",
    ),
    ("ConnectionError", "no answer{there} ({said}); check the network and AWS_ENDPOINT_URL"),
    ("IncompleteReadError", "the object did not arrive whole ({said}); run it again"),
    ("ResponseParserError", "{there} no store of objects answers ({said}); check AWS_ENDPOINT_URL"),
)
"""By class of botocore, the first that fits."""
_OF_CODE: Final = {
    "NoSuchBucket": "there is no such bucket{there}; check its name and AWS_ENDPOINT_URL",
    "NoSuchKey": "the object was removed meanwhile; run it again on what is there now",
    "AccessDenied": "access denied{there} ({said}); whoever reads needs s3:ListBucket on the "
    "bucket and s3:GetObject on its objects (and kms:Decrypt where they are encrypted so)",
    "InvalidObjectState": "the object is archived; restore it (aws s3api restore-object), or name "
    "a prefix without it",
    "RequestTimeTooSkewed": "the clock of this machine is wrong ({said}); set it",
    "PermanentRedirect": "the bucket is in another region ({said}); set AWS_REGION",
    "SlowDown": "too many requests{there} ({said}); run it again later, or with fewer --workers",
}
_REFUSED: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
    | {"TokenRefreshRequired", "ExpiredTokenException", "InvalidClientTokenId"}
)
_DENIED: Final = frozenset({"401", "403", "AllAccessDisabled", "AccountProblem"})


def explain_fault(error: Exception, endpoint: str | None) -> str:
    """Error of boto3, and the endpoint that was asked -> what is wrong, and what to do."""
    there = f" at {endpoint}" if endpoint else ""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        return _explain_answer(answer.get("Error", {}), there)
    said = " ".join(str(error).split()) or type(error).__name__
    names = {each.__name__ for each in type(error).__mro__}
    for name, words in _OF_ERROR:
        if name in names:
            return words.format(said=said, there=there).strip()
    if "endpoint" in said:
        return f"{said}; write AWS_ENDPOINT_URL as http(s)://HOST:PORT"
    return f"cannot be read: {said}"


def _explain_answer(answer: dict[str, Any], there: str) -> str:
    code = str(answer.get("Code", "no code"))
    said = " ".join(str(answer.get("Message") or code).split())
    if code in _REFUSED:
        return f"the credentials are refused{there} ({code}: {said}); renew them, or {_CREDENTIALS}"
    words = _OF_CODE.get("AccessDenied" if code in _DENIED else code)
    if words is None:
        return f"{code} was answered{there} ({said}); is it S3? check AWS_ENDPOINT_URL"
    return words.format(there=there, said=said)
