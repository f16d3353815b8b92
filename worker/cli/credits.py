"""Commands that buy and share credits."""

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
    bought = {kind: given[kind] for kind in ("email", "sms") if given[kind] is not None}
    if bought:
        order["credits"] = bought
    if given["for_self"]:
        order["credit_to"] = "self"
    if given["billing"]:
        order["billing"] = dict(_pair(text) for text in given["billing"])
    print_answer(ask("credits.purchase", order), as_json=as_json, table=tables.purchase)


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
