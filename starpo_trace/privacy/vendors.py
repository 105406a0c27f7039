"""Secrets with a form of their own: vendors' token prefixes, keys, credentials in URLs.

The prefixes are those of detect-secrets and of the vendors' own documentation; tests generate
tokens and compare with what detect-secrets finds.
"""

import re
from typing import Final

from starpo_trace.privacy.assignments import ESCAPED, is_placeholder
from starpo_trace.privacy.rules import Rule

_GITLAB: Final = ("pat", "dt", "ft", "soat", "rt", "cbt", "imt", "ptt", "agent", "oas")
_UNDERSCORED: Final = {
    "github_token": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    "stripe_key": ("sk_live_", "rk_live_", "sk_test_", "rk_test_", "whsec_"),
    "npm_token": ("npm_",),
    "huggingface_token": ("hf_",),
    "groq_api_key": ("gsk_",),
    "docker_token": ("dckr_pat_",),
    "digitalocean_token": ("dop_v1_", "doo_v1_", "dor_v1_"),
    "shopify_token": ("shpat_", "shpss_", "shppa_", "shpca_"),
    "replicate_token": ("r8_",),
    "linear_api_key": ("lin_api_",),
    "notion_token": ("ntn_",),
}


def _start(prefix: str) -> str:
    """A literal prefix not inside a word; an escape or a percent code may precede."""
    escapes = (r"\\[nrtbf]", r"\\u[0-9A-Fa-f]{4}", "%[0-9A-Fa-f]{2}")
    behind = "|".join(f"(?<={escape}{prefix})" for escape in escapes)
    return rf"{prefix}(?:(?<![A-Za-z0-9_-]{prefix})|{behind})"


def _has_long_run(match: re.Match[str]) -> bool:
    """Not words joined by hyphens."""
    return re.search("[A-Za-z0-9]{16}", match[0]) is not None


def _is_no_placeholder(match: re.Match[str]) -> bool:
    return not is_placeholder(match["secret"])


_PORT: Final = re.compile(r"[0-9]{1,5}[?#]")


def _is_url_password(match: re.Match[str]) -> bool:
    """Whether it is one, and not a port with a query that holds an address."""
    return _is_no_placeholder(match) and _PORT.match(match["secret"]) is None


def _rule(name: str, pattern: str, *hints: str) -> Rule:
    return Rule(name=name, pattern=pattern, hints=hints)


VENDORS: Final = (
    _rule("anthropic_api_key", r"sk-ant-[A-Za-z0-9_-]{20,}+", "sk-"),
    Rule(
        name="openai_api_key",
        pattern=_start("sk-") + r"[A-Za-z0-9_-]{20,}+",
        hints=("sk-",),
        accept=_has_long_run,
    ),
    Rule(  # long enough a prefix to be known inside a word too
        name="openai_api_key",
        pattern=r"sk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{20,}+",
        hints=("sk-",),
        accept=_has_long_run,
    ),
    _rule(
        "aws_access_key",
        r"A(?:KIA|SIA|BIA|CCA|3T[0-9A-Z])[0-9A-Z]{16}",
        *("AKIA", "ASIA", "ABIA", "ACCA", "A3T"),
    ),
    *(
        _rule(name, rf"{prefix}[A-Za-z0-9]{{16}}[A-Za-z0-9_]{{4,}}+", prefix)
        for name, prefixes in _UNDERSCORED.items()
        for prefix in prefixes
    ),
    _rule(
        "gitlab_token",
        rf"gl(?:{'|'.join(_GITLAB)})-[A-Za-z0-9_-]{{20,}}+",
        *(f"gl{kind}-" for kind in _GITLAB),
    ),
    _rule("gitlab_token", r"GR1348941[A-Za-z0-9_-]{20,}+", "GR1348941"),
    _rule(
        "slack_token",
        r"xox(?:[abceoprs]|e\.xox[bp])-[A-Za-z0-9-]{10,}+|xapp-[0-9]-[A-Za-z0-9-]{10,}+",
        *("xox", "xapp-"),
    ),
    _rule(
        "webhook_url",
        r"hooks\.slack\.com\\?/(?:services|workflows|triggers)\\?/(?P<secret>[\w/\\+-]{20,}+)",
        "hooks.slack.com",
    ),
    _rule(
        "webhook_url",
        r"discord(?:app)?\.com\\?/api\\?/webhooks\\?/[0-9]{8,24}\\?/(?P<secret>[\w-]{20,}+)",
        ".com/api/webhooks",
    ),
    _rule("google_api_key", r"AIza[A-Za-z0-9_-]{35,}+", "AIza"),
    _rule("google_oauth_token", r"ya29\.[A-Za-z0-9_-]{20,}+", "ya29."),
    _rule("google_oauth_secret", r"GOCSPX-[A-Za-z0-9_-]{20,}+", "GOCSPX"),
    _rule("pypi_token", r"pypi-A[A-Za-z0-9_-]{40,}+", "pypi-A"),
    _rule("twilio_key", r"SK[0-9a-f]{32}(?![0-9a-f])", "SK"),
    _rule("sendgrid_key", r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,}+", "SG"),
    _rule("telegram_token", r":AA(?<=[0-9]{8}:AA)(?P<secret>[A-Za-z0-9_-]{33})", ":AA"),
    _rule(
        "square_token",
        r"sq0(?:csp|atp|idp)-[A-Za-z0-9_\\-]{22,}+",
        *("sq0csp-", "sq0atp-", "sq0idp-"),
    ),
    _rule("perplexity_api_key", r"pplx-[A-Za-z0-9]{32,}+", "pplx-"),
    _rule("xai_api_key", r"xai-[A-Za-z0-9]{32,}+", "xai-"),
    _rule("vault_token", r"hvs\.CAES[A-Za-z0-9_-]{40,}+", "CAES"),
    _rule("age_key", r"AGE-SECRET-KEY-1[0-9A-Z]{40,}+", "AGE-SECRET-KEY-"),
    _rule("azure_storage_key", r"AccountKey=(?P<secret>[A-Za-z0-9+/=]{40,}+)", "AccountKey="),
    _rule(
        "jwt", _start("eyJ") + r"[A-Za-z0-9_=-]{8,}+\.[A-Za-z0-9_=-]{2,}+[A-Za-z0-9_.=-]*+", "eyJ"
    ),
    _rule(
        "private_key",
        r"-----BEGIN (?:[A-Z0-9]{1,10}+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
        r"(?=[\s\\nr\"',+]{0,12}(?:[A-Za-z0-9+/=]{16}|[A-Z][\w-]{1,20}: ))"
        r"[^-]*+(?:-(?!----)[^-]*+)*+(?:-----END [A-Z0-9 ]{1,50}-----)?",
        "PRIVATE KEY",
    ),
    _rule(
        "private_key",
        r"PuTTY-User-Key-File-[0-9](?s:.)*?(?:Private-MAC: ?[0-9a-f]{40,64}|\Z)",
        "TTY-User-Key-File-",
    ),
    Rule(
        name="url_password",
        pattern=r"/(?:(?<=://)|(?<=:\\/\\/))"
        rf"""(?:[^\s/@:"'<>\\]|{ESCAPED}){{0,256}}+:"""
        rf"""(?P<secret>(?:[^\s/@"'<>\\]|{ESCAPED}){{1,256}}+"""
        rf"""(?:@(?:[^\s/@"'<>\\?#,;]|{ESCAPED}){{0,256}}+){{0,8}})@""",
        hints=("@",),
        accept=_is_url_password,
    ),
)
"""Rules for secrets that their form gives away."""
