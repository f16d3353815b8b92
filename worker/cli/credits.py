"""Commands that buy, correct and share credits."""

from typing import Any

import click

from models.messages.base import Json
from worker.cli import tables
from worker.cli.output import ask, json_option, new_id, print_answer
from worker.cli.session import Need, needs


@click.command()
@click.argument("buyer")
@click.option("--plan", help="Buy a plan …")
@click.option("--email", type=int, help="… or email credits …")
@click.option("--sms", type=int, help="… or SMS credits,")
@click.option("--amount", type=int, help="for this much, in the currency's minor unit (1990 is 19.90 EUR),")
@click.option("--currency", help="in this currency (EUR).")
@click.option("--for-self", is_flag=True, help="Only for the buyer: refused while they use another's credits.")
@click.option("--billing", multiple=True, metavar="NAME=TEXT", help="Billing information for this order.")
@click.option("--order-id", help="The order's id: the same id is never credited twice. Default: a new one.")
@json_option
@needs(Need.DATABASE)
def buy(*, buyer: str, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Record a purchase. The credits go to the credit owner of BUYER."""
    order: Json = {"order_id": given["order_id"] or new_id("order"), "buyer": buyer}
    order |= {name: given[name] for name in ("plan", "amount", "currency") if given[name] is not None}
    bought = _counts(given)
    if bought:
        order["credits"] = bought
    if given["for_self"]:
        order["credit_to"] = "self"
    if given["billing"]:
        order["billing"] = dict(_pair(text) for text in given["billing"])
    print_answer(ask("credits.purchase", order), as_json=as_json, table=tables.purchase)


@click.command()
@click.argument("order_id")
@click.option("--kind", type=click.Choice(["refund", "chargeback"]), required=True, help="How it was paid back.")
@click.option("--reason", required=True, help="Why, for those who read the order later.")
@click.option("--email", type=int, help="Take back only so many email credits …")
@click.option("--sms", type=int, help="… or SMS credits. Default: everything that is left of the order.")
@click.option("--buyer", help="Who bought it: needed if several organizations have an order of this id.")
@click.option("--reversal-id", help="The reversal's id: the same id is never taken back twice. Default: a new one.")
@json_option
@needs(Need.DATABASE)
def reverse(*, order_id: str, kind: str, reason: str, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Take back the credits of ORDER_ID, whose price was paid back.

    They are taken from the credit owner who got them. What is spent already becomes a debt, which the owner's next
    purchases pay first. An order is never taken back by more than it brought, however often it is reversed.
    """
    reversal: Json = {"reversal_id": given["reversal_id"] or new_id("reversal"), "order_id": order_id}
    reversal |= {"kind": kind, "reason": reason}
    if given["buyer"]:
        reversal["buyer"] = given["buyer"]
    credits_ = _counts(given)
    if credits_:
        reversal["credits"] = credits_
    print_answer(ask("credits.reverse", reversal), as_json=as_json, table=tables.reversal)


@click.command()
@click.argument("owner")
@click.option("--email", type=int, help="Email credits to give, or to take (-5) …")
@click.option("--sms", type=int, help="… and SMS credits.")
@click.option("--reason", required=True, help="Why, for those who read the statement later.")
@click.option("--as", "actor", required=True, help="Who makes the adjustment: needs the right adjust_credits.")
@click.option("--adjustment-id", help="The adjustment's id: the same id is never made twice. Default: a new one.")
@json_option
@needs(Need.DATABASE)
def adjust(*, owner: str, reason: str, actor: str, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Give OWNER credits by hand, or take some away. A balance never goes below zero.

    It is kept for ever who made an adjustment, and why: see `postage statement` and `postage entry`.
    """
    adjustment: Json = {"adjustment_id": given["adjustment_id"] or new_id("adjustment"), "actor": actor, "owner": owner}
    adjustment |= {"credits": _counts(given), "reason": reason}
    print_answer(ask("credits.adjust", adjustment), as_json=as_json, table=tables.adjustment)


def _counts(given: Json) -> Json:
    """Return the credits that the options --email and --sms give."""
    return {kind: given[kind] for kind in ("email", "sms") if given[kind] is not None}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=TEXT.", param_hint="--billing")
    return name, value


@click.command()
@click.argument("user")
@click.argument("owner")
@click.option("--as", "actor", required=True, help="Who makes the change: needs the rights view_user_list, edit_user.")
@click.option("--change-id", help="The change's id: the same id is never made twice. Default: a new one.")
@json_option
@needs(Need.DATABASE)
def share(*, user: str, owner: str, actor: str, change_id: str | None, as_json: bool) -> None:
    """Let USER spend the credits of OWNER. OWNER = USER ends the sharing."""
    change = {"change_id": change_id or new_id("change"), "actor": actor, "user": user, "owner": owner}
    print_answer(ask("credits.set_owner", change), as_json=as_json, table=tables.change)
