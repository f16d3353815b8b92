"""Commands that save a user, a role or a plan: `postage user save`, `postage role save`, `postage plan save`."""

from typing import Any, get_args

import click

from models.messages.base import Json
from models.messages.billing import Right
from worker.cli import tables
from worker.cli.output import ask, json_option, print_answer
from worker.cli.session import Need, needs


@click.group()
def user() -> None:
    """Save a user."""


@click.group()
def role() -> None:
    """Save a role of an organization."""


@click.group()
def plan() -> None:
    """Save a plan."""


version_option = click.option("--version", "version", type=int, help="Grows with each save: an older one is refused.")
actor_option = click.option("--as", "actor", help="Who saves; kept with the change.")


@user.command("save")
@click.argument("user_id", metavar="USER")
@click.option("--organization", required=True, help="The organization; it cannot be changed.")
@click.option("--name", required=True, help="Their emails come from this name …")
@click.option("--email", required=True, help="… and from this address.")
@click.option("--role", required=True, help="A role of the organization that was saved before.")
@click.option("--billing", multiple=True, metavar="NAME=TEXT", help="Billing information. Default: stays as it is.")
@version_option
@actor_option
@json_option
@needs(Need.DATABASE)
def save_user(*, as_json: bool, billing: tuple[str, ...], **given: Any) -> None:  # noqa: ANN401
    """Make USER, or change who they are."""
    if billing:
        given["billing"] = dict(_pair(text) for text in billing)
    _save("users.save", given, as_json=as_json)


@role.command("save")
@click.argument("organization")
@click.argument("role_name", metavar="ROLE")
@click.option("--right", "rights", multiple=True, type=click.Choice(get_args(Right)), help="A right that it holds.")
@version_option
@actor_option
@json_option
@needs(Need.DATABASE)
def save_role(*, as_json: bool, role_name: str, rights: tuple[str, ...], **given: Any) -> None:  # noqa: ANN401
    """Make ROLE of ORGANIZATION, or replace its rights."""
    _save("roles.save", given | {"role": role_name, "rights": list(rights)}, as_json=as_json)


@plan.command("save")
@click.argument("plan_id", metavar="PLAN")
@click.option("--name", required=True, help="What it is called.")
@click.option("--email", type=int, default=0, help="Email credits.")
@click.option("--sms", type=int, default=0, help="SMS credits.")
@click.option("--price", type=int, required=True, help="In the currency's minor unit (1990 is 19.90 EUR).")
@click.option("--currency", required=True, help="As in ISO 4217: EUR.")
@version_option
@actor_option
@json_option
@needs(Need.DATABASE)
def save_plan(*, as_json: bool, plan_id: str, email: int, sms: int, **given: Any) -> None:  # noqa: ANN401
    """Make PLAN, or replace its terms. Orders made before keep theirs."""
    _save("plans.save", given | {"plan": plan_id, "credits": {"email": email, "sms": sms}}, as_json=as_json)


def _save(task: str, given: Json, *, as_json: bool) -> None:
    message = {name: value for name, value in given.items() if value is not None}
    print_answer(ask(task, message), as_json=as_json, table=tables.saved)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not NAME=TEXT.", param_hint="--billing")
    return name, value
