"""Passwords, tokens and signatures in URLs are recognised, masked in time, and refused where a URL enters."""

import time

import pytest

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from isotorus.errors import UserError
from isotorus.secrets import holds_password, holds_registry_password, masked, masked_command

SECRET = "c4n4ry"
URLS = [
    f"postgresql://me:{SECRET}@host/x",
    f"mysql://me:pa/{SECRET}@host/x",
    f"http://me:a#{SECRET}@host/x",
    f"http://me:a@b/{SECRET}@host/x",
    f"https://{SECRET}@host/x",
    f"https://me:a'{SECRET}@host/x",
    f'postgresql://me:{SECRET}"b@host/x',
    f"s3://me%3A{SECRET}@bucket/x",
    f"simplecache::https://me:{SECRET}@host/x",
    f"http:/me:{SECRET}@host/x",  # as pathlib writes it
    f"mssql+pyodbc:///?odbc_connect=Driver%3DX%3BPwd%3D{SECRET}",
    f"https://host/x?url=https%3A%2F%2Fme%3A{SECRET}%40other",
    f"https://host/x?p%77d={SECRET}",
    f"https://host/x#access_token={SECRET}",
    *(
        f"https://host/x?a=b&{name}={SECRET}"
        for name in (
            "pwd",
            "auth",
            "code",
            "sig",
            "sign",
            "X-Amz-Signature",
            "api_key",
            "authorization",
            "ticket",
        )
    ),
]
HARMLESS = [
    "http://host:80/a@b",
    "s3://bucket/a@b",
    "http://[::1]:80/a@b",
    "sqlite:////folder/a:b@c",
    "https://host/x?author=me&size=3&versionId=3",
    "/work:/work,/data:/data",
    "http://host:9: no answer, ask me@host",
    "['http://host:80','me@host']",
    '{"uri":"http://host","mail":"me@host"}',
]


@pytest.mark.parametrize("url", URLS)
def test_a_secret_in_a_url_is_recognised_and_masked(url: str):
    text = f"reading {url}, which failed"
    assert holds_password(url) and SECRET not in masked(text)
    assert masked(text).startswith("reading ") and masked(text).endswith(" which failed")


@pytest.mark.parametrize("text", HARMLESS)
def test_other_addresses_stay_readable(text: str):
    assert not holds_password(text) and masked(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "://",
        "http://",
        "?key",
        "key",
        "TOKEN='",
        "--",
        " ",
        "[?",
        "://[[",
        "a:/@",
        "--key ",
        "?a=%25",
        "://:'",
        "://a:b'",
    ],
)
def test_masking_takes_time_in_proportion_to_the_length(text: str):
    """A text of this length takes hours if the time grows with its square."""
    began = time.monotonic()
    masked_command(text * (400_000 // len(text)))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "{url}/x.tar", "made"],
        ["index", "tars", "{url}"],
        ["info", "{url}"],
        ["verify", "{url}"],
        ["preview", "{url}", "--out", "page.html"],
        ["pack", "{url}", "made"],
    ],
)
@pytest.mark.parametrize("url", [f"http://me:{SECRET}@127.0.0.1:9", f"http://127.0.0.1:9/x?pwd={SECRET}"])
def test_commands_refuse_such_a_url_before_they_ask_the_server(
    arguments: list[str], url: str, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"holds a password|folder") as error:
        main([argument.format(url=url) for argument in arguments])
    assert SECRET not in str(error.value) + "".join(capsys.readouterr()) and not list(tmp_path.iterdir())


def test_opening_a_data_set_refuses_such_a_url():
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY"):
        Dataset(f"s3://key:{SECRET}@bucket/set")


def test_a_digest_of_an_image_is_no_password():
    assert holds_registry_password(f"me:{SECRET}@registry.org/team/image")
    assert holds_registry_password(f"docker://me:{SECRET}@registry.org#team/image")
    assert not holds_registry_password("registry.org:5000/team/image:1.0@sha256:0123")


@pytest.mark.parametrize("first", ["AccountKey", "SharedAccessKey", "accountkey"])
def test_a_connection_string_may_begin_with_its_key(first: str):
    assert holds_password(f"{first}={SECRET}==;x=y") and SECRET not in masked(f"{first}={SECRET}==")
