"""Every built-in rule: what it masks, what it leaves, and detect-secrets as an independent judge."""

import random
import re
import string

import pytest
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

from starpo_trace.privacy.prefilter import Prefilter
from starpo_trace.privacy.redaction import Redaction
from starpo_trace.privacy.redactor import SECRETS, Redactor
from starpo_trace.privacy.rules import PII

ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + string.digits
URLSAFE = ALNUM + "_-"
BASE64 = ALNUM + "+/"
REDACTOR = Redactor(Redaction())


def word(alphabet: str, length: int, seed: int = 0) -> str:
    """Random characters; the first run of 20 has a digit and both cases where there are any."""
    return "".join(random.Random(f"{alphabet}{length}{seed}").choices(alphabet, k=length))


def jwt(seed: int = 0) -> str:
    import base64
    import json

    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": str(seed), "iat": 1})
    encode = base64.urlsafe_b64encode
    body = ".".join(encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return f"{body}.{word(URLSAFE, 43, seed)}"


def pem(kind: str = "RSA ") -> str:
    lines = "\n".join(word(BASE64, 64, i) for i in range(4))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----"


def make_tokens(seed: int = 0) -> list[tuple[str, str]]:
    """One secret of every form, with the rule that should mask it."""

    def w(alphabet: str, length: int) -> str:
        return word(alphabet, length, seed)

    return [
        ("openai_api_key", "sk-" + w(ALNUM, 20) + "T3BlbkFJ" + w(ALNUM, 20)),
        ("openai_api_key", "sk-proj-" + w(ALNUM, 40) + "T3BlbkFJ" + w(ALNUM, 20)),
        ("anthropic_api_key", "sk-ant-api03-" + w(URLSAFE, 95)),
        *(("aws_access_key", p + w(UPPER, 16)) for p in ("AKIA", "ASIA", "ABIA", "ACCA", "A3TX")),
        *(("github_token", f"gh{kind}_" + w(ALNUM, 36)) for kind in "pousr"),
        ("github_token", "github_pat_" + w(ALNUM, 22) + "_" + w(ALNUM, 59)),
        *(("gitlab_token", f"gl{kind}-" + w(ALNUM, 20)) for kind in ("pat", "dt", "ft", "rt")),
        ("gitlab_token", "glagent-" + w(ALNUM, 50)),
        ("gitlab_token", "GR1348941" + w(ALNUM, 20)),
        *(("slack_token", f"xox{kind}-1234567890-" + w(ALNUM, 24)) for kind in "abposr"),
        ("slack_token", "xapp-1-A012345-123-" + w(HEX, 64)),
        ("webhook_url", "https://hooks.slack.com/services/T0AB12/B0CD34/" + w(ALNUM, 24)),
        ("webhook_url", "https://discord.com/api/webhooks/123456789012345678/" + w(URLSAFE, 68)),
        *(("stripe_key", f"{kind}_live_" + w(ALNUM, 24)) for kind in ("sk", "rk")),
        ("google_api_key", "AIza" + w(URLSAFE, 35)),
        ("google_oauth_token", "ya29." + w(URLSAFE, 60)),
        ("google_oauth_secret", "GOCSPX-" + w(URLSAFE, 28)),
        ("npm_token", "npm_" + w(ALNUM, 36)),
        ("pypi_token", "pypi-AgEIcHlwaS5vcmc" + w(URLSAFE, 70)),
        ("huggingface_token", "hf_" + w(ALNUM, 34)),
        ("groq_api_key", "gsk_" + w(ALNUM, 52)),
        ("docker_token", "dckr_pat_" + w(ALNUM, 27)),
        ("digitalocean_token", "dop_v1_" + w(HEX, 64)),
        ("shopify_token", "shpat_" + w(HEX, 32)),
        ("replicate_token", "r8_" + w(ALNUM, 37)),
        ("linear_api_key", "lin_api_" + w(ALNUM, 40)),
        ("notion_token", "ntn_" + w(ALNUM, 43)),
        ("perplexity_api_key", "pplx-" + w(ALNUM, 48)),
        ("xai_api_key", "xai-" + w(ALNUM, 80)),
        ("twilio_key", "SK" + w(HEX, 32)),
        ("sendgrid_key", "SG." + w(URLSAFE, 22) + "." + w(URLSAFE, 43)),
        ("telegram_token", "1234567890:AA" + w(URLSAFE, 33)),
        ("square_token", "sq0csp-" + w(URLSAFE, 43)),
        ("vault_token", "hvs.CAES" + w(URLSAFE, 90)),
        ("age_key", "AGE-SECRET-KEY-1" + w(UPPER, 58)),
        ("azure_storage_key", "AccountKey=" + w(BASE64, 86) + "=="),
        ("jwt", jwt(seed)),
        ("private_key", pem()),
        ("private_key", pem("").replace("\n", "\\n")),
        ("private_key", pem("OPENSSH ")),
        ("url_password", "postgres://app:" + w(ALNUM, 12) + "@db.internal/prod"),
        ("url_password", "https:\\/\\/app:" + w(ALNUM, 12) + "@db.internal\\/prod"),
    ]


ASSIGNED = [
    ("password", 'password = "hunter2"'),
    ("password", "'password': 'open sesame'"),
    ("password", "DB_PASSWORD=correcthorse"),
    ("password", 'Password: "x y"'),
    ("password", "user=ann passwd=s3cr3t-pw"),
    ("password", "PWD: abc12345"),
    ("password", r"{\"password\": \"hunter2\"}"),
    ("password", "pwd=hunter2x"),
    ("password", "MYSQL_PWD=/hunter2"),
    ("password", "$pwd = 'hunter2'"),
    ("password", 'PASSWORD = r"hunter2x9"'),
    ("password", 'password = @"hunter2x9"'),
    ("api_key", "app.secret_key = b'_5#y2LF4Q8zxec9'"),
    ("api_key", '{"API Key": "s3cr3tV4lue99x"}'),
    ("api_key", "Private Key: s3cr3tV4lue99x"),
    ("token", "DISCORD_TOKEN=MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7k"),
    ("secret", 'client_secret="k3jh45kj3h45"'),
    ("secret", "CLIENT_SECRET=k3jh45kj3h45"),
    ("token", '"access_token": "a1b2c3d4e5"'),
    ("token", "refreshToken = 'a1B2c3D4'"),
    ("token", "token=0123456789abcdef0123"),
    ("api_key", 'api_key = "A1b2C3d4E5"'),
    ("api_key", "x-api-key: a1b2c3d4e5f6"),
    ("api_key", "apiKey: 'a1b2c3d4e5f6'"),
    ("api_key", "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
    ("api_key", 'aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"'),
    ("authorization", "Authorization: Bearer a1b2c3d4e5"),
    ("authorization", "-H 'authorization: Basic dXNlcjpwYXNzd29yZA=='"),
    ("authorization", '"Authorization": "Token abcdef123456"'),
    ("cookie", "Cookie: session=a1b2c3d4; theme=dark"),
    ("cookie", "set-cookie: id=a3fWa99; Max-Age=2592000"),
]

CLEAN = [
    "What is the weather in Paris tomorrow?",
    "risk-averse task-oriented sk-learn-compatible-estimators-for-all-of-us",
    "Please reset my password: it does not work.",
    "password: required, token: optional",
    "max_tokens=4096, next_page_token: CAESEAoKMTIzNDU2Nzg5MA1",
    '{"token": "Hello", "logprob": -0.1}',
    '{"properties": {"password": {"type": "string"}, "api_key": {"type": "string"}}}',
    'api_key = os.environ["API_KEY"]; client = Client(api_key=api_key, token=get_token())',
    "export API_KEY=<your key> TOKEN=${TOKEN} PASSWORD=********",
    '{"api_key": "your-api-key"}',
    "https://example.com/a:b@c and user@example.com",
    "2024-05-28T10:00:00Z 3fa85f64-5717-4562-b3fc-2c963f66afa6",
    "The secret: eat well. The key: 42. A cookie: chocolate.",
    "-----BEGIN PUBLIC KEY-----",
    "A file that starts with -----BEGIN RSA PRIVATE KEY----- must not be committed.",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "call_abc123DEF456ghi789jkl012",
    "Authorization: required",
    "docker run --rm -v $PWD:/workspace -v $PWD:data/in2 img; cd $OLDPWD",
    "PWD=/workspace/repo\nOLDPWD=/workspace\npwd: ~/project",
    '{"env": {"PWD": "/srv/app1", "OLDPWD": "/"}, "pwd": "C:\\\\work\\\\a1"}',
    "const API_KEY = process.env.API_KEY; TOKEN: settings.API_TOKEN2",
    "access_token = oauth2Client.credentials.access_token",
    "http://localhost:3000?email=joe@example.com and http://localhost:80#me@here",
    "The API key: see the second page.",
    "TASK0123456789abcdef RISK",
    "",
]


@pytest.mark.parametrize(("rule", "secret"), make_tokens(), ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("around", ["{}", 'see "{}", ok', "key\\n{}\\n", "a={}&b=1", "Ünï {} 漢字"])
def test_tokens_of_vendors_are_masked_wherever_they_stand(rule, secret, around):
    """The secret's characters are gone and the mask names its rule."""
    redacted = REDACTOR.redact_text(around.format(secret))
    assert f"[REDACTED:{rule}]" in redacted
    assert secret[-12:] not in redacted or rule == "url_password"
    assert re.search(r"://app:\[|:\\/\\/app:\[", redacted) or rule != "url_password"


@pytest.mark.parametrize(("rule", "text"), ASSIGNED)
def test_secrets_known_by_their_names_are_masked(rule, text):
    """Assignments, fields and headers, in text."""
    assert f"[REDACTED:{rule}]" in REDACTOR.redact_text(text)


@pytest.mark.parametrize("text", CLEAN)
def test_what_only_looks_like_a_secret_is_left(text):
    """Prose, code, schemas, ids and placeholders come back as the same object."""
    assert REDACTOR.redact_text(text) is text


def test_the_assigned_value_alone_is_masked():
    """Names, quotes and what follows stay."""
    assert REDACTOR.redact_text('login(user="ann", password="pa\\"ss", n=1)') == (
        'login(user="ann", password="[REDACTED:password]", n=1)'
    )


@pytest.mark.parametrize("seed", range(20))
def test_whatever_detect_secrets_finds_is_masked(seed):
    """Every finding of its vendor detectors in generated secrets is gone after redaction."""
    names = {
        *("AWS Access Key", "Azure Storage Account access key", "Basic Auth Credentials"),
        *("GitHub Token", "GitLab Token", "JSON Web Token", "NPM tokens", "OpenAI Token"),
        *("Private Key", "PyPI Token", "SendGrid API Key", "Slack Token", "Square OAuth Secret"),
        *("Stripe Access Key", "Telegram Bot Token", "Twilio API Key"),
    }
    detectors = [
        plugin()
        for name, plugin in get_mapping_from_secret_type_to_class().items()
        if name in names
    ]
    secrets = [secret for _, secret in make_tokens(seed)]
    secrets += [
        f'aws_secret_access_key = "{word(BASE64, 40, seed)}"',
        f"//registry.example.com/:_authToken=npm_{word(ALNUM, 36, seed)}",
        f"https://ann:{word(ALNUM, 16, seed)}@example.com/path",
    ]
    found, missed = set(), []
    for secret in secrets:
        redacted = REDACTOR.redact_text(secret)
        for detector in detectors:
            for finding in detector.analyze_string(secret):
                found.add(detector.secret_type)
                if finding in redacted and detector.secret_type != "Private Key":
                    missed.append((detector.secret_type, secret, redacted))
                if detector.secret_type == "Private Key" and "[REDACTED:" not in redacted:
                    missed.append((detector.secret_type, secret, redacted))
    assert (len(detectors), found, missed) == (len(names), names, [])


def test_every_pattern_is_a_regular_expression():
    """They are compiled when first needed, where a mistake would be found too late."""
    for rule in SECRETS:
        assert re.compile(rule.pattern).pattern == rule.pattern


def test_hints_are_in_what_their_rules_match():
    """The prefilter lets through every rule that would match one of the examples."""
    prefilter = Prefilter(SECRETS)
    texts = [text for _, text in [*make_tokens(1), *make_tokens(2), *ASSIGNED]]
    missed = [
        (rule.name, text)
        for text in texts
        for index, rule in enumerate(SECRETS)
        if (match := re.search(rule.pattern, text))
        and (rule.accept is None or rule.accept(match))
        and index not in prefilter.select(f"some text, {text}. more: text")
    ]
    assert missed == []


@pytest.mark.parametrize(
    ("rule", "positive", "negative"),
    [
        ("email", "write to ann.b+c@mail.example.com.", "a@b and @ann"),
        ("card", "card 4111 1111 1111 1111 ok", "order 4111 1111 1111 1112"),
        ("iban", "to GB82 WEST 1234 5698 7654 32", "to GB82 WEST 1234 5698 7654 33"),
        ("phone", "call +49 30 901820 or", "on 2024-05-28 at 10:00"),
        ("phone", "call (555) 123-4567", "id 5551234567"),
        ("ip_address", "from 192.168.0.17, port", "version 1.2.3.4.5 or 300.1.1.1"),
    ],
)
def test_personal_data_is_masked_on_request(rule, positive, negative):
    """Off by default; check digits tell numbers apart."""
    redactor = Redactor(Redaction(rules=PII))
    assert f"[REDACTED:{rule}]" in redactor.redact_text(positive)
    assert redactor.redact_text(negative) is negative
    assert REDACTOR.redact_text(positive) is positive
