"""What `cwtool doctor` found, the logs and the settings in a zip file to send to others, without what is secret or personal."""

from __future__ import annotations

import getpass
import json
import os
import re
import zipfile
from pathlib import Path
from urllib.parse import unquote

from cwa_daemon.base.settings import Settings
from cwa_engine import __version__
from cwa_engine.base.errors import OutputError
from cwa_engine.base.places import CONFIG_FILE
from cwa_engine.base.plain import JsonMap

_GONE = "[redacted]"
_SECRET_NAMES = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_LEAST = 6  # characters of a value that is looked for: shorter ones are found in ordinary words
# http://user:password@host, also with a raw @ or / in the password, and with everything percent-encoded.
_USER_IN_URL = (
    re.compile(r"(://)[^\s/:@\"'<>]*:[^\s\"'<>]*@"),
    re.compile(r"(://)[^\s/\"'<>]*@"),
    re.compile(r"(%3A%2F%2F)[^\s\"'<>&]*%40", re.IGNORECASE),
)
_URL_WITH_PASSWORD = re.compile(r"://[^\s/:@]*:(?P<password>[^\s]+)@")


def check_target(bundle: Path) -> None:
    """Refuse what can be no new file, before the checks, which take their time. Raises OutputError."""
    if os.path.lexists(bundle):
        raise OutputError(f"{bundle} is there already", hint="give --bundle a new file")
    if not bundle.parent.is_dir():
        raise OutputError(f"{bundle} cannot be written: there is no folder {bundle.parent}", hint="make it")


def write_bundle(settings: Settings, checks: list[JsonMap], target: Path) -> None:
    """A zip with the checks, the logs and the config file; what is secret or personal is blacked out. Raises OutputError."""
    report = {
        "cwtool": __version__,
        "checks": [{name: redact(text) for name, text in check.items()} for check in checks],
    }
    contents = {"report.json": json.dumps(report, indent=2)}
    for path in [*sorted(settings.logs.glob("*.log*")), CONFIG_FILE]:
        if path.is_file():
            contents[path.name] = redact(_text_or_reason(path))
    try:
        with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED) as bundle:
            for name, content in contents.items():
                bundle.writestr(name, content)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}", hint="give --bundle another file") from error


def _text_or_reason(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


def redact(text: str) -> str:
    """The text without tokens, passwords in URLs, values of secret variables, and without the user's name and home."""
    for pattern in _USER_IN_URL:
        text = pattern.sub(rf"\1{_GONE}@", text)
    for secret in sorted(_secrets_of_environment(), key=len, reverse=True):
        text = text.replace(secret, _GONE)
    text = re.sub(r"\b(hf|sk|ghp|gho|github_pat|glpat)[_-][A-Za-z0-9_-]{4,}", _GONE, text)
    text = re.sub(r"(?i)(authorization\W{1,4}).*", rf"\1{_GONE}", text)
    text = re.sub(r"(?i)(token|password|passwd|secret)(\W{1,4})\S+", rf"\1\2{_GONE}", text)
    text = text.replace(os.path.expanduser("~"), "~")  # noqa: PTH111  # Path.home() fails where there is none
    return re.sub(rf"\b{re.escape(user_name())}\b", "[user]", text)


def _secrets_of_environment() -> set[str]:
    """Values of variables that are named as secrets, and passwords in the URLs of any, as they are and decoded."""
    found = set()
    for name, value in os.environ.items():
        if _SECRET_NAMES.search(name):
            found.add(value)
        for text in (value, unquote(value)):
            found |= {match["password"] for match in _URL_WITH_PASSWORD.finditer(text)}
    return {secret for known in found for secret in (known, unquote(known)) if len(secret) >= _LEAST}


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number that the system knows no name of
        return str(os.getuid())
