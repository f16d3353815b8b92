"""What is kept, shown and logged of a carrier that rests names nobody, whatever it said to some message."""

import structlog

from models.database.engine import Database
from models.sends.carrier import Outcome, Receipt
from models.sends.resting import find_rests
from tests.factories import email_job
from tests.fakes import answer
from tests.integration.sending import scripted_context


def test_a_carrier_that_rests_keeps_its_words_without_the_addresses_in_them(stocked: Database) -> None:
    words = "550 5.7.1 <john@acme.test> may not send to ada@example.test, ask +31 6 1234 5678"
    context = scripted_context(stocked, Receipt(Outcome.OUR_FAULT, words))

    with structlog.testing.capture_logs() as logs:
        answer(context, "email.send", email_job())

    with stocked.snapshot() as connection:
        [rest] = find_rests(connection)
    assert (rest.carrier, rest.is_our_fault) == ("mail", True)
    assert rest.detail == "550 5.7.1 <…> may not send to …, ask …"
    [line] = [line for line in logs if line["event"] == "carrier rests"]
    assert line["why"] == rest.detail
