"""Texts, JSON, values, messages and tokens through a redactor."""

import json
import logging
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import pytest

from starpo_trace.errors import ConfigError
from starpo_trace.privacy.build import build_redactor
from starpo_trace.privacy.redaction import Redaction
from starpo_trace.privacy.redactor import Redactor
from starpo_trace.privacy.rules import PII, Rule

AWS = "AKIA" + "Q3EGRIZ7XSMM5T2B"
MASK = "[REDACTED:aws_access_key]"
KEY = b"0123456789abcdef"


@pytest.fixture
def redactor() -> Redactor:
    return Redactor(Redaction())


def with_rule(**settings) -> Redactor:
    rule = Rule(name="employee_id", pattern=r"EMP-[0-9]{6}", pseudonym=True)
    return Redactor(Redaction(rules=[rule], **settings))


def test_own_rules_mask_beside_the_built_in_ones():
    """Without a key the mask is the type alone."""
    assert with_rule().redact_text(f"EMP-000001 has {AWS}") == f"[REDACTED:employee_id] has {MASK}"


def test_equal_values_have_equal_pseudonyms():
    """The key decides them; other values and other keys give other ones."""
    redactor = with_rule(pseudonym_key=KEY)
    first = redactor.redact_text("EMP-000001")
    assert redactor.redact_text("again EMP-000001") == f"again {first}"
    assert redactor.redact_text("EMP-000002") != first
    assert with_rule(pseudonym_key=KEY[::-1]).redact_text("EMP-000001") != first


def test_a_pseudonym_is_hmac_sha_256():
    """So that another program with the key can compute it."""
    import hashlib
    import hmac

    digest = hmac.new(KEY, b"EMP-000001", hashlib.sha256).hexdigest()[:12]
    redacted = with_rule(pseudonym_key=KEY).redact_text("EMP-000001")
    assert redacted == f"[employee_id:{digest}]"


def test_a_named_group_is_what_is_masked():
    """The rest of the match is context."""
    rule = Rule(name="pin", pattern=r"PIN (?P<secret>[0-9]{4})")
    assert Redactor(Redaction(rules=[rule])).redact_text("PIN 1234.") == "PIN [REDACTED:pin]."


def test_allowed_texts_stay_and_denied_ones_go():
    """Deny is stronger than allow, allow is stronger than rules."""
    redactor = with_rule(allow=[AWS, r"EMP-0+[0-9]"], deny=["Project X", "EMP-000002"])
    text = f"{AWS} EMP-000001 EMP-000002 EMP-111111 Project X"
    assert redactor.redact_text(text) == (
        f"{AWS} EMP-000001 [REDACTED:deny] [REDACTED:employee_id] [REDACTED:deny]"
    )


def test_an_allowed_text_need_not_be_a_regular_expression():
    """It is always taken literally too."""
    redactor = Redactor(Redaction(allow=["pa(ss"]))
    assert redactor.redact_text('password="pa(ss"') == 'password="pa(ss"'
    assert redactor.redact_value({"password": "pa(ss"}) == {"password": "pa(ss"}


def test_denied_fields_lose_their_whole_value(redactor):
    """In values and in JSON text, whatever the value and the case of the name."""
    redactor = Redactor(Redaction(deny_fields=["ssn", "Address"]))
    value = {"SSN": 123, "address": {"city": "Ulm"}, "x": [{"ssn": None}], "y": 1}
    expected = {"SSN": "[REDACTED:field]", "address": "[REDACTED:field]"}
    expected |= {"x": [{"ssn": None}], "y": 1}
    assert redactor.redact_value(value) == expected
    text = '{"a": "{\\"ssn\\": 7}",  "SSN" : [1, {"b": 2}], "y":1e0}'
    assert redactor.redact_json(text) == (
        '{"a": "{\\"ssn\\": \\"[REDACTED:field]\\"}",  "SSN" : "[REDACTED:field]", "y":1e0}'
    )


def test_fields_named_as_secrets_lose_their_values(redactor):
    """In objects as in JSON text; placeholders and numbers stay."""
    value = {"password": "hunter2", "api_key": "", "n": 1, "token": "Hello", "pwd": None}
    expected = {**value, "password": "[REDACTED:password]"}
    assert redactor.redact_value(value) == expected
    assert json.loads(redactor.redact_json(json.dumps(value))) == expected


def test_json_keeps_everything_but_the_secret(redactor):
    """Spacing, number forms, repeated keys and escapes are the policy's action."""
    text = '{ "a":1e0, "a" : 2.50,\n "k": "%s", "u":"\\u00e9\\n", "big": 12345678901234567890123}'
    assert redactor.redact_json(text % AWS) == text % MASK


def test_secrets_hidden_by_json_escapes_are_found(redactor):
    """Strings are searched decoded."""
    hidden = '{"a": "\\u0041' + AWS[1:] + '", "b": "\\n' + AWS + '"}'
    assert json.loads(redactor.redact_json(hidden)) == {"a": MASK, "b": f"\n{MASK}"}


def test_a_repeated_key_hides_nothing(redactor):
    """Parsers keep the last value; the first is in the text all the same."""
    assert AWS not in redactor.redact_json(f'{{"a": "{AWS}", "a": "x"}}')


def test_json_that_is_none_is_text(redactor):
    """Cut arguments of a stream that broke are searched as text."""
    assert redactor.redact_json(f'{{"key": "{AWS}') == f'{{"key": "{MASK}'


def test_messages_are_copied_not_changed(redactor):
    """Parts without a secret stay the same objects."""
    message = {
        "role": "assistant",
        "parts": [
            {"type": "text", "content": "ok"},
            {"type": "tool_call", "id": "c1", "name": "f", "arguments": f'{{"k":"{AWS}"}}'},
        ],
    }
    before = json.dumps(message)
    redacted = redactor.redact_message(message)
    assert redacted["parts"][1]["arguments"] == f'{{"k":"{MASK}"}}'
    assert redacted["parts"][0] is message["parts"][0]
    assert json.dumps(message) == before


def test_clean_messages_are_the_same_object(redactor):
    """Twice, as the second time takes a shorter way."""
    message = {"role": "user", "parts": [{"type": "text", "content": "What is the weather?"}]}
    assert [redactor.redact_message(message) is message for _ in range(2)] == [True, True]


def test_keys_are_searched_and_stay_apart(redactor):
    """Two secrets as keys become two fields."""
    other = AWS[:-1] + "C"
    assert redactor.redact_value({AWS: 1, other: 2}) == {MASK: 1, f"{MASK}#2": 2}


def test_tokens_that_touch_a_mask_are_marked(redactor):
    """Positions stay aligned: a mark for each token."""
    tokens = ["my ", "key AK", AWS[2:12], "", AWS[12:], " ok"]
    assert redactor.redact_tokens(tokens, "".join(tokens)) == [
        False,
        True,
        True,
        False,
        True,
        False,
    ]


def test_tokens_that_do_not_add_up_are_all_marked(redactor):
    """Unless nothing is masked."""
    assert redactor.redact_tokens(["\ufffd", "\ufffd"], f"ü{AWS}") == [True, True]
    assert redactor.redact_tokens(["\ufffd", "\ufffd"], "ü fine") == [False, False]


def test_tokens_changed_by_a_function_are_marked():
    """Everything between the first and the last change."""
    redactor = Redactor(Redaction(function=lambda text: text.replace("Ann", "X")))
    tokens = ["hi ", "Ann", ", ", "bye ", "Ann", "!"]
    marks = redactor.redact_tokens(tokens, "".join(tokens))
    assert marks == [False, True, True, True, True, False]


def test_the_users_function_sees_masked_text_last():
    """Its result is what is recorded."""
    seen = []
    redactor = Redactor(Redaction(function=lambda text: (seen.append(text), text.upper())[1]))
    assert redactor.redact_text(f"key {AWS}") == f"KEY {MASK.upper()}"
    assert seen == [f"key {MASK}"]


@pytest.mark.parametrize("result", [None, 3, b"x"])
def test_a_function_that_returns_no_text_hides_it(result):
    """Fail closed."""
    redactor = Redactor(Redaction(function=lambda text: result))
    assert redactor.redact_text("some text") == "[REDACTED:error]"
    assert json.loads(redactor.redact_json('{"a": "some text"}')) == {
        "[REDACTED:error]": "[REDACTED:error]"
    }


def test_a_failing_function_hides_the_text_also_from_logs(caplog):
    """Neither the result nor the log quotes what the exception quoted."""

    def fail(text):
        raise ValueError(f"cannot judge {text}")

    redactor = Redactor(Redaction(function=fail))
    with caplog.at_level(logging.DEBUG):
        assert redactor.redact_value(["sentinel-77"]) == ["[REDACTED:error]"]
        assert redactor.redact_tokens(["sentinel-77"], "sentinel-77") == [True]
    assert "sentinel-77" not in caplog.text
    assert redactor.num_redactions == {"error": 2}


def test_memory_errors_are_not_hidden():
    """The guard around the recording sees them."""

    def fail(text):
        raise MemoryError

    with pytest.raises(MemoryError):
        Redactor(Redaction(function=fail)).redact_value({"a": "b"})


@dataclass
class Account:
    owner: str
    password: str


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("no")


class Loud:
    def __repr__(self):
        return f"<Loud {AWS}>"


def test_objects_are_searched_as_they_would_be_written(redactor):
    """Data classes by their fields, others by their repr."""
    silent = Unspeakable()  # written as its type and address
    redacted = redactor.redact_value([Account("ann", "hunter2"), Loud(), silent, {1}])
    assert redacted[2] is silent
    assert [*redacted[:2], *redacted[3:]] == [
        {"owner": "ann", "password": "[REDACTED:password]"},
        f"<Loud {MASK}>",
        {1},
    ]


def test_odd_values_of_a_state_pass(redactor):
    """Lone surrogates, huge integers, NaN, keys of other types, subclasses."""
    value = OrderedDict(
        [("s", "\ud800 ok"), ("i", 10**5000), ("n", float("nan")), (1, (None, True)), (None, b"x")]
    )
    assert redactor.redact_value(value) is value
    assert redactor.redact_text(f"\ud800 {AWS}") == f"\ud800 {MASK}"


def test_huge_integers_fail_closed_where_numbers_are_searched():
    """Python refuses to write integers of more than 4300 digits."""
    assert Redactor(Redaction(rules=PII)).redact_value([10**5000]) == ["[REDACTED:error]"]


def test_numbers_are_searched_for_personal_data():
    """A card number may be an integer."""
    redactor = Redactor(Redaction(rules=PII))
    assert redactor.redact_value([4111111111111111, 5]) == ["[REDACTED:card]", 5]
    assert redactor.redact_json('{"n": 4111111111111111}') == '{"n": "[REDACTED:card]"}'


def test_cycles_and_shared_parts_end(redactor):
    """A cycle is masked where it closes; 2^200 paths through shared lists are walked once."""
    cycle = {"k": AWS}
    cycle["self"] = cycle
    assert redactor.redact_value(cycle) == {"k": MASK, "self": "[REDACTED:error]"}
    shared = ["x"]
    for _ in range(100):
        shared = [shared, shared]
    assert redactor.redact_value(shared) is shared


def test_what_is_nested_too_deeply_is_masked(redactor):
    """Down there nothing is known to be clean."""
    deep = AWS
    for _ in range(5000):
        deep = [deep]
    assert AWS not in json.dumps(redactor.redact_value(deep))
    text = "[" * 100_000 + f'"{AWS}"' + "]" * 100_000
    assert AWS not in redactor.redact_json(text)


def test_masks_are_counted_by_rule(redactor):
    """For the statistics; marking tokens counts nothing."""
    redactor.redact_value({"password": "hunter2", "a": [f"{AWS} {AWS}"]})
    redactor.redact_tokens([AWS], AWS)
    assert redactor.num_redactions == {"password": 1, "aws_access_key": 2}


def test_threads_share_a_redactor(redactor):
    """No count is lost."""
    texts = [f"{AWS} {i}" for i in range(200)]
    threads = [
        threading.Thread(target=lambda: [redactor.redact_text(text) for text in texts])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert redactor.num_redactions == {"aws_access_key": 800}


def test_masking_reveals_nothing_new_to_mask():
    """What a mask makes match is masked too, so that a second pass changes nothing."""
    rules = [Rule(name="a", pattern="x+"), Rule(name="b", pattern=r"(?<=\])y")]
    redactor = Redactor(Redaction(rules=rules))
    once = redactor.redact_text("xxyy")
    assert once == redactor.redact_text(once)
    assert not {"x", "y"} & set(once)


ADVERSARIAL = [
    "eyJ", "sk-", "://", "a:b@://", "password=", 'password="', "token:", "-----BEGIN ",
    "-----BEGIN PRIVATE KEY-----\nAAAAAAAAAAAAAAAAAAAA", "PuTTY-User-Key-File-2", "ghp_", "_a",
    "cookie: a=", "authorization: ", "--password ", "<token>a", '["a",', '{"value":', "a:b@c@",
    '{"password":[', "--a", "://a:b@c@", "\\", '"', "[", "@", "a@", "A3T", "glpat-", "4 ", "1.", "AB12",
]  # fmt: skip


@pytest.mark.parametrize("piece", ADVERSARIAL)
@pytest.mark.parametrize("tail", ["", "!"])
def test_no_text_makes_redaction_slow(piece, tail):
    """Ten times the text takes nothing like a hundred times the time."""
    redactor = Redactor(Redaction(rules=PII))

    def measure(num_chars):
        text = (piece * num_chars)[:num_chars] + tail
        times = []
        for i in range(3):
            started = time.process_time()
            redactor.redact_value([text + str(i)])
            times.append(time.process_time() - started)
        return min(times)

    assert measure(200_000) < 60 * measure(20_000) + 0.05


@pytest.mark.parametrize(
    ("redaction", "message"),
    [
        (Redaction(rules=[Rule(name="x", pattern="(")]), r"pattern='\(' of redaction rule 'x'"),
        (Redaction(rules=[Rule(name="Bad name", pattern="x")]), "name='Bad name'"),
        (Redaction(rules=[Rule(name="error", pattern="x")]), "name='error'"),
        (Redaction(pseudonym_key=b"short"), "key of 5 bytes"),
        (Redaction(allow="text"), "allow='text'"),
        (Redaction(deny=[""]), "'' in allow or deny"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(redaction, message):
    """At once, saying what is wrong."""
    with pytest.raises(ConfigError, match=message):
        Redactor(redaction)


def test_the_environment_decides_last(tmp_path):
    """An operator's switch wins over the program's wish; the key may be in a file."""
    assert build_redactor(None, {}) is None
    assert build_redactor(False, {}) is None
    assert build_redactor(True, {"STARPO_REDACTION": "off"}) is None
    assert isinstance(build_redactor(False, {"STARPO_REDACTION": "on"}), Redactor)
    assert isinstance(build_redactor(Redaction(), {}), Redactor)
    path = tmp_path / "key"
    path.write_bytes(KEY + b"\n")
    rules = Redaction(rules=PII)
    results = {
        build_redactor(rules, environment).redact_text("ann@example.com")
        for environment in (
            {"STARPO_PSEUDONYM_KEY": KEY.decode()},
            {"STARPO_PSEUDONYM_KEY_FILE": str(path)},
        )
    }
    assert len(results) == 1
    assert results.pop().startswith("[email:")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STARPO_PSEUDONYM_KEY_FILE", "/none", "'/none' cannot be read (No such file"),
        ("STARPO_PSEUDONYM_KEY", "short-secret", "a key has at least 16 bytes"),
        ("STARPO_REDACTION", "maybe", "='maybe' in the environment cannot be used: say on or off"),
    ],
)
def test_a_bad_variable_is_warned_of_and_masks(monkeypatch, caplog, name, value, words):
    """No agent ends of it, nothing goes unmasked, and the log shows no key."""
    monkeypatch.setattr("starpo_trace.guard._reported", set())
    for redaction in (Redaction(rules=PII), name != "STARPO_REDACTION"):
        redactor = build_redactor(redaction, {name: value})
        assert redactor is not None
        assert "ghp_" not in redactor.redact_text("token ghp_" + "a1B2" * 9)
    [message] = [record.getMessage() for record in caplog.records]
    assert words in message
    assert "short-secret" not in message


NAMED_VALUES = [
    ({"Authorization": ["Bearer tokABCDEF123456"]}, {"Authorization": ["[authorization]"]}),
    ({"Set-Cookie": ["sid=SIDabc123; Path=/"]}, {"Set-Cookie": ["[cookie]"]}),
    ({"password": ["hunter2abc", None, True]}, {"password": ["[password]", None, True]}),
    ({"Password": 1234567890123, "n": 5}, {"Password": "[password]", "n": 5}),
    ({"password": 1e300, "pwd": 12}, {"password": "[password]", "pwd": 12}),
    ({"secret": {"value": "zzTop99887766"}}, {"secret": {"value": "[secret]"}}),
    ({"secret": {"a": [{"b": "zzTop99"}]}}, {"secret": {"a": [{"b": "[secret]"}]}}),
    ([["authorization", "Bearer tok12345"]], [["authorization", "[authorization]"]]),
    ({"name": "DB_PASSWORD", "value": "ab1"}, {"name": "DB_PASSWORD", "value": "[password]"}),
    ({"Value": "ab1", "Key": "DB_PASSWORD"}, {"Value": "[password]", "Key": "DB_PASSWORD"}),
    ({"name": "pwd", "value": ["x"]}, {"name": "pwd", "value": ["[password]"]}),
    ({"cookies": {"sid": "abc123"}}, {"cookies": {"sid": "[cookie]"}}),
    (
        {"password": {"type": "string", "default": "ab1", "description": "x"}},
        {"password": {"type": "string", "default": "[password]", "description": "x"}},
    ),
]


@pytest.mark.parametrize(("value", "expected"), NAMED_VALUES)
def test_whatever_a_secrets_name_stands_for_is_masked(redactor, value, expected):
    """Lists, objects, numbers, pairs, named values: as values, as JSON, and as JSON in JSON."""
    expected = json.loads(re.sub(r'"\[(\w+)\]"', r'"[REDACTED:\1]"', json.dumps(expected)))
    assert redactor.redact_value(value) == expected
    for indent in (None, 4):
        text = json.dumps(value, indent=indent)
        assert json.loads(redactor.redact_json(text)) == expected
        assert json.loads(redactor.redact_text(text)) == expected
        outer = json.dumps({"body": text})
        assert json.loads(json.loads(redactor.redact_json(outer))["body"]) == expected


@pytest.mark.parametrize(
    "value",
    [
        {"password": {"type": "string", "description": "The user's password"}},
        {"password": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        {"properties": {"token": {"type": ["string", "null"]}}, "required": ["password", "user"]},
        {"token": [15496, 995], "max_tokens": 12345678, "secret": True, "password": None},
        {"token": {"text": " Hello"}, "next_token": [123456789012]},
        {"name": "color", "value": "a1b2c3d4e5"},
        {"key": "password", "value": None},
        ["password", "user_name"],
        {"password": ["${DB_PASSWORD}", "****"]},
    ],
)
def test_what_only_describes_a_secret_stays(redactor, value):
    """Schemas, names of fields, token ids, placeholders."""
    text = json.dumps(value)
    assert redactor.redact_value(value) is value
    assert redactor.redact_json(text) is text


def test_bytes_and_objects_under_a_secrets_name_are_masked(redactor):
    """Also as ASGI gives headers, and when a shared list was seen clean before."""
    mask = "[REDACTED:password]"
    assert redactor.redact_value({"password": b"ab1"}) == {"password": mask}
    assert redactor.redact_value({"password": {"ab1"}}) == {"password": [mask]}
    assert redactor.redact_value(("pwd", "ab1")) == ("pwd", mask)
    assert redactor.redact_value([(b"authorization", b"Bearer tok12345")]) == [
        (b"authorization", "[REDACTED:authorization]")
    ]
    shared = ["ab1"]
    assert redactor.redact_value([shared, {"pwd": shared}]) == [["ab1"], {"pwd": [mask]}]


def test_json_given_as_text_stays_json(redactor):
    """A number becomes a string; both ways agree."""
    text = '{"password":12345678, "x": 1.50}'
    expected = '{"password":"[REDACTED:password]", "x": 1.50}'
    assert [redactor.redact_text(text), redactor.redact_json(text)] == [expected, expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgres://user:p@ss@host/db", "postgres://user:[url_password]@host/db"),
        ("http://u:p1@h?to=a@b.c", "http://u:[url_password]@h?to=a@b.c"),
        ('{"secret_key": "abc def9"}', '{"secret_key": "[api_key]"}'),
        ("run --password abc123 now", "run --password [password] now"),
        ("run --api-key 'AbCd12345'", "run --api-key '[secret]'"),
        ("passphrase: x1y2z3", "passphrase: [password]"),
        ("KEY_PASSPHRASE=x1y2z3", "KEY_PASSPHRASE=[password]"),
        ("<db.password>abc</db.password>", "<db.password>[password]</db.password>"),
        ("<apiKey>AbCd12345</apiKey>", "<apiKey>[secret]</apiKey>"),
        ("id-msk-proj-" + "aB3" * 12, "id-m[openai_api_key]"),
    ],
)
def test_secrets_in_urls_options_and_elements_are_masked(redactor, text, expected):
    """Up to the last @ of a URL's authority; after a blank; between tags; glued to a letter."""
    expected = re.sub(r"\[(\w+)\]", r"[REDACTED:\1]", expected)
    assert redactor.redact_text(text) == expected
    assert redactor.redact_text(expected) is expected


@pytest.mark.parametrize(
    "text",
    [
        "the --password flag is needed",
        "--token-file x1y2z3a4",
        "--password --verbose",
        "<password>string</password> <p>abc1</p>",
        '{"api_key": "press Alt and enter"}',
        "--- | ---\n| a | b |",
        "a phrase: of words",
        "https://host:80/a@b",
    ],
)
def test_options_elements_and_urls_without_a_secret_stay(redactor, text):
    """The names alone say little."""
    assert redactor.redact_text(text) is text
