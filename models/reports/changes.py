"""Who changed what in an organization, as those may see it who may see its users."""

from sqlalchemy import Connection, select

from models.database.paging import SortKey, fetch_page
from models.database.schema import changes
from models.messages.answer import iso_time
from models.messages.base import Json
from models.messages.views import ViewChanges
from models.reports.views import between, paged, viewer_of_users
from models.users.organizations import NOBODYS


def show_changes(connection: Connection, view: ViewChanges) -> Json:
    """Return the changes of users, roles, owners and balances of the viewer's organization, and of plans, newest first.

    With `of: "self"` only what the viewer has changed.

    Raises
    ------
    Refused
        `unknown_user`, or `not_permitted` without the right `view_user_list`.

    """
    viewer = viewer_of_users(connection, view)
    shown = changes.c.org_id.in_([viewer.org_id, NOBODYS]) & between(changes.c.at, view)
    if view.of == "self":
        shown &= changes.c.actor == viewer.id
    if view.subject is not None:
        shown &= changes.c.subject == view.subject
    newest_first = {name: SortKey(changes.c[name], descending=True) for name in ("id", "org_id")}
    page = fetch_page(connection, select(changes).where(shown), newest_first, view.next, view.page)
    rows = [
        {
            "kind": row.kind,
            "subject": row.subject,
            "actor": row.actor,
            "old": row.old,
            "new": row.new,
            "at": iso_time(row.at),
        }
        for row in page.rows
    ]
    return {"status": "done", "viewer": viewer.id, **paged(view, page, rows)}
