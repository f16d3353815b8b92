"""The URLs of carriers: what they say, and sentences for what they cannot say, which repeat no password."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.carrier_urls import CarrierUrlError, check_carrier_urls, parse_carrier_url, parse_carrier_urls


def test_a_url_says_where_a_carrier_is_and_when_it_is_used() -> None:
    url = parse_carrier_url(
        "smtp://us%40er:p%2Fw@mail.example:587?name=main&priority=2&weight=3&rate=2.5&connections=7&window=2h&slow=30s"
        "&starttls=never"
    )

    assert (url.scheme, url.host, url.port, url.user, url.password) == ("smtp", "mail.example", 587, "us@er", "p/w")
    assert (url.name, url.priority, url.weight, url.rate, url.connections) == ("main", 2, 3, 2.5, 7)
    assert (url.window, url.slow) == (timedelta(hours=2), timedelta(seconds=30))
    assert url.options == {"starttls": "never"}
    assert "p/w" not in repr(url)


def test_what_a_url_does_not_say_is_usual() -> None:
    url = parse_carrier_url("https://sms.Example/send", connections=9)

    assert (url.name, url.priority, url.weight, url.rate, url.connections) == ("sms.example", 1, 1, None, 9)
    assert (url.window, url.slow, url.prefixes, url.path, url.address) == (
        None, None, (), "/send", "https://sms.example",
    )  # fmt: skip


def test_prefixes_are_the_first_digits_of_numbers() -> None:
    assert parse_carrier_url("https://a?prefixes=%2B46, 47,1202").prefixes == ("46", "47", "1202")


@pytest.mark.parametrize(("host", "is_loopback"), [("127.0.0.1", True), ("[::1]", True), ("localhost", True),
                                                   ("127.example", False), ("10.0.0.1", False)])  # fmt: skip
def test_whether_a_carrier_is_on_this_machine_is_seen(host: str, *, is_loopback: bool) -> None:
    assert parse_carrier_url(f"smtp://{host}").is_loopback is is_loopback


def test_several_carriers_have_blanks_between_them() -> None:
    urls = parse_carrier_urls("smtp://a?name=x\n  smtp://b:26?priority=2 ")

    assert [(url.name, url.address, url.priority) for url in urls] == [("x", "smtp://a", 1), ("b", "smtp://b:26", 2)]


@pytest.mark.parametrize(
    "urls",
    [
        "smtp://", "smtp://u:secret@a:99999", "smtp://[u:secret@a", "smtp://u:secret@a#b", "smtp://u:secret@a?name=A",
        "smtp://u:secret@a?name=", "smtp://u:secret@a?priority=0", "smtp://u:secret@a?weight=1001",
        "smtp://u:secret@a?connections=0", "smtp://u:secret@a?connections=²", "smtp://u:secret@a?rate=0",
        "smtp://u:secret@a?rate=1e9", "smtp://u:secret@a?rate=nan", "smtp://u:secret@a?window=1", "smtp://a?window=1w",
        "smtp://u:secret@a?prefixes=x", "smtp://u:secret@a?prefixes=46,,47", "smtp://u:secret@a?name=b&name=c",
        "smtp://u:secret@a?=&&", "smtp://u:secret@a smtp://u:secret@a", "", "  ", "mailto:u:secret@a",
        "ftp://u:secret@a", "secret",
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_a_sentence(urls: str) -> None:
    with pytest.raises(CarrierUrlError) as refused:
        check_carrier_urls("email", urls)

    sentence = str(refused.value)
    assert sentence.endswith(".")
    assert sentence[0].isupper()
    assert "secret" not in sentence


@given(st.text(max_size=80))
def test_any_text_is_a_carrier_or_a_refusal(text: str) -> None:
    for url in (text, f"smtp://{text}", f"smtp://a?{text}", f"smtp://a?name={text}"):
        try:
            parse_carrier_urls(url)
        except CarrierUrlError:
            continue
