"""`password = ...`, `"api_key": "..."`, `Authorization: Bearer ...`: secrets known by their names.

The same judgement serves free text, JSON text and the fields of objects: `classify_field` says
what a name stands for, `is_secret_value` whether its value is one rather than a placeholder or a
word of prose.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from starpo_trace.privacy.rules import Rule

_MAX_NAME_LENGTH: Final = 80

_FAMILIES: Final = tuple(
    (name, re.compile(pattern, re.IGNORECASE | re.ASCII))
    for name, pattern in (
        ("pwd", r"(?:\A|[^A-Za-z0-9_-])(?:old)?pwd\Z"),  # a password, or the working folder
        ("password", r"(?:password|passwd|pwd|passphrase)\Z"),
        ("secret", r"(?<!is_)secret\Z"),
        (
            "not_secret",
            r"(?:next|prev|previous|page|paging|continuation|eos|bos|pad|unk|sep|cls|mask|first"
            r"|last|stop|start|end|special|image|sync|cancell?ation|per|each|new|top)"
            r"[_ -]?token\Z",
        ),
        ("bare_token", r"(?:\A|[^A-Za-z0-9_-])token\Z"),
        ("token", r"token\Z"),
        (
            "api_key",
            r"(?:api|access|secret|private|account|encryption|signing|auth|subscription|master"
            r"|shared|service|client|admin|deploy|license)[_ .-]?key\Z",
        ),
        ("authorization", r"authorization\Z"),
        ("cookie", r"(?:\A|[^A-Za-z0-9])cookies?\Z"),
    )
)
_PLACEHOLDER: Final = re.compile(
    r"<[^>]*>|\$\{?\w+\}?|\{\{?.*\}?\}|%\(?\w*\)?s?|[*.x#_-]{3,}"
    r"|(?:your|my)[_ -]\S*|string|str|null|none|true|false|undefined|required|optional",
    re.IGNORECASE | re.DOTALL,
)
_MASKS: Final = re.compile(r"\[(?:REDACTED:\w+|\w+:[0-9a-f]{12})\](?:#[0-9]+)?")
_IDENTIFIER: Final = re.compile(r"[A-Za-z_.]+")
_CONSTANT: Final = re.compile(r"[A-Z0-9_]+")
_NAME_BEFORE: Final = re.compile(r"(?:[\w.-]{1,40} )?[\w.-]{0,40}\Z")
_PATH: Final = re.compile(r"(?:~|\.{1,2}|[A-Za-z]:)?[/\\]")
_REFERENCE: Final = re.compile(  # what code says in place of a value: `process.env.API_KEY`
    r"(?:process|os|import|settings|config|self|this|env|args|options|app|ctx|context|request"
    r"|\w{0,32}[Cc]lient)(?:\.[A-Za-z_]\w{0,40}){1,6}"
)


@lru_cache(maxsize=4096)
def classify_field(name: str) -> str | None:
    """Name of a field, variable or header -> the family of secrets it holds, if any."""
    name = name[-_MAX_NAME_LENGTH:]
    for family, pattern in _FAMILIES:
        if pattern.search(name):
            return None if family == "not_secret" else family
    return None


def name_mask(family: str) -> str:
    """Family -> the type shown in masks."""
    return {"bare_token": "token", "pwd": "password"}.get(family, family)


def is_secret_value(family: str, value: str) -> bool:
    """Whether the value of a field of this family is a secret."""
    unmasked = _MASKS.sub(" ", value)
    if is_placeholder(unmasked):
        return False
    is_masked, value = unmasked != value, unmasked.strip()
    if family in {"password", "pwd"}:
        return family == "password" or _PATH.match(value) is None
    if family in {"cookie", "authorization"}:
        return len(value) >= 8 or (family == "cookie" and len(value) >= 4 and _has_digit(value))
    num_blanks = sum(character.isspace() for character in value)
    if is_masked or num_blanks > 2 or (num_blanks and not _has_digit(value)):
        return False  # seen to already, or prose about a secret
    if family == "bare_token":  # also the field of a token's text in log-probabilities
        return len(value) >= 16 and _has_digit(value)
    return len(value) >= 6 if family == "secret" else len(value) >= 8 and _is_mixed(value)


def is_placeholder(value: str) -> bool:
    """Whether a value only stands for a secret: `<key>`, `${KEY}`, `****`, `your-key`, a mask."""
    value = _MASKS.sub(" ", value).strip()
    return not value or _PLACEHOLDER.fullmatch(value) is not None


def _accept_assignment(match: re.Match[str]) -> bool:
    """Whether name and value of an assignment in free text are those of a secret."""
    text, start = match.string, match.start()
    before = _NAME_BEFORE.search(text[max(0, start - 40) : start])
    found = re.match(r"\w+", match[0])
    keyword = found[0] if found else ""
    name = (before[0] if before else "") + keyword
    family, value = classify_field(name), match["secret"]
    if family is None or value is None:
        return family is not None
    is_used = family == "pwd" and _is_expansion(match, keyword, name)
    if is_used or not is_secret_value(family, value):
        return False
    if match["quote"] is not None:
        return True
    if text[match.end() : match.end() + 1] in {"(", "["} or _REFERENCE.fullmatch(value):
        return False  # a call or a lookup in code
    if _CONSTANT.fullmatch(name):
        return True
    return _has_digit(value) or (family in {"password", "pwd"} and not _IDENTIFIER.fullmatch(value))


def _is_expansion(match: re.Match[str], keyword: str, name: str) -> bool:
    """Whether a variable is used, as in `-v $PWD:work`, rather than given a value."""
    word = re.split(r"\W", name)[-1]
    begin = match.start() + len(keyword) - len(word)
    separator = match.string[match.start() + len(keyword) : match.start("secret")]
    return match.string[max(0, begin - 1) : begin] == "$" and "=" not in separator


def _accept_option(match: re.Match[str]) -> bool:
    """Whether `--name value` of a command line gives a secret."""
    family, value = classify_field(match["name"]), match["secret"]
    if family is None or not is_secret_value(family, value):
        return False
    return _has_digit(value) or not _IDENTIFIER.fullmatch(value)


def _accept_element(match: re.Match[str]) -> bool:
    """Whether `<name>value</name>` holds a secret."""
    family = classify_field(match["name"])
    return family is not None and is_secret_value(family, match["secret"])


def _accept_authorization(match: re.Match[str]) -> bool:
    value = match["secret"]
    if value is None:
        return True
    return not is_placeholder(value) and (_is_mixed(value) or len(value) >= 24)


def _has_digit(value: str) -> bool:
    return any("0" <= character <= "9" for character in value)


def _is_mixed(value: str) -> bool:
    """Digits, or both cases, as random text has."""
    return _has_digit(value) or (value.lower() != value and value.upper() != value)


# Quotes, brackets and blanks are no part of a text's skeleton, so a name and its `=` meet there.
_SEPARATOR: Final = r"""["'\]\\ \t]{0,8}(?::=|=>|={1,3}|:)"""
# Where values stop at a backslash, what JSON writes for a letter or a slash is still part of them.
ESCAPED: Final = r"\\(?:u[0-9A-Fa-f]{4}|/)"
# Not masked in free text, but JSON text with it is taken apart.
_STRUCTURE: Final = r"""|(?P<structure>\s{0,32}(?:[\[{"'\\]|-?[0-9]))"""
_VALUE: Final = (
    r"""(?:\s{0,32}(?:[bBrRuUfF]{1,2}|[@$])?(?P<quote>\\{0,7}["'])|[ \t]{0,8})(?P<secret>"""
    r"""(?(quote)(?:(?!(?P=quote))(?:\\[^\n]|[^\n]))++"""
    rf"""|(?:[^\s"'`,;&<>(){{}}\[\]\\|]|{ESCAPED}){{6,}}+))"""
)
_SCHEME_AND_VALUE: Final = (
    r"""\s{0,8}\\{0,7}["']?(?:[A-Za-z-]{1,20}+[ ]{1,4})?"""
    rf"""(?P<secret>(?:[^\s"'\\,;]|{ESCAPED}){{8,}}+)"""
)
_PAIRS: Final = (
    r"""[ \t]{0,8}\\{0,7}["']?"""
    rf"""(?P<secret>(?:[^\s=;"'\\]|{ESCAPED}){{1,64}}+=(?:[^"'\\\r\n]|{ESCAPED}){{4,}}+)"""
)
_OPTION: Final = (
    r"--(?=[A-Za-z])(?P<name>[A-Za-z0-9_-]{3,40}+)(?:NAMES)"
    r"""[ \t]{1,8}\\{0,7}["']?(?P<secret>[^\s"'`,;&<>(){}\[\]\\|-][^\s"'`;&<>(){}\[\]\\|]{2,}+)"""
)
_ELEMENT: Final = r"<(?P<name>[\w.:-]{3,60}+)(?:NAMES)>(?P<secret>[^<>\r\n]{1,256}+)<"


def _end_in(names: Iterable[str]) -> str:
    """Ends of names -> what looks back at them, in the usual cases."""
    return "|".join(
        f"(?<={form})" for name in names for form in (name, name.upper(), name.capitalize())
    )


def _make_rule(name: str, pattern: str, *hints: str) -> Rule:
    return Rule(
        name=name,
        pattern=f"{pattern}{_SEPARATOR}(?:{_VALUE}{_STRUCTURE})",
        hints=hints,
        accept=_accept_assignment,
    )


ASSIGNMENTS: Final = (
    # Each pattern starts with a rare letter and then looks behind; capitals have their own.
    _make_rule("password", "w(?:ord(?<=assword)|d(?:(?<=asswd)|(?<=pwd)))", "word=", "wd="),
    _make_rule("password", "PASSW(?:OR)?D", "PASSWORD", "PASSWD"),
    _make_rule("password", "PWD", "PWD"),
    _make_rule("password", "phrase(?<=assphrase)", "assphrase"),
    _make_rule("password", "PASSPHRASE", "PASSPHRASE"),
    *(
        Rule(name=name, pattern=pattern, hints=(hint,), accept=accept)
        for name, names in (
            ("password", ("password", "passwd", "pwd", "passphrase")),
            ("secret", ("secret", "token", "key")),
        )
        for pattern, hint, accept in (
            (_OPTION.replace("NAMES", _end_in(names)), "--", _accept_option),
            (_ELEMENT.replace("NAMES", _end_in(names)), "</", _accept_element),
        )
    ),
    _make_rule("secret", "cret(?<=ecret)", "ecret="),
    _make_rule("secret", "SECRET", "SECRET"),
    _make_rule("token", "ken(?<=oken)", "oken="),
    _make_rule("token", "TOKEN", "TOKEN"),
    _make_rule("api_key", "key", "key="),
    _make_rule("api_key", "Key", "Key="),
    _make_rule("api_key", "KEY", "KEY"),
    *(
        Rule(
            name="authorization",
            pattern=f"{pattern}{_SEPARATOR}(?:{_SCHEME_AND_VALUE}{_STRUCTURE})",
            hints=(hint,),
            accept=_accept_authorization,
        )
        for pattern, hint in (
            ("zation(?<=uthorization)", "zation="),
            ("UTHORIZATION", "UTHORIZATION"),
        )
    ),
    *(
        Rule(
            name="cookie",
            pattern=f"{pattern}{_SEPARATOR}(?:{_PAIRS}{_STRUCTURE})",
            hints=(hint,),
        )
        for pattern, hint in (("kie(?<=ookie)s?", "kie="), ("COOKIES?", "COOKIE"))
    ),
)
"""Rules for secrets that only their names give away."""
