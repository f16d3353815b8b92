"""The roles of the viewer's organization, and the rights that each holds. They are kept elsewhere."""

from models.messages.base import Json
from models.users.roles import RIGHTS, roles_of
from worker.console.screen import Asked, Screen


def _answer(asked: Asked) -> Json:
    viewer = asked.viewer.user
    rows = asked.read(lambda connection: roles_of(connection, viewer.org_id))
    return {"status": "done", "viewer": viewer.id, "rows": rows}


def _details(_asked: Asked, _answer: Json) -> Json:
    return {"rights": RIGHTS}


def _rows(answer: Json) -> list[Json]:
    """Return the roles as rows with a column a right."""
    return [
        {"role": row["role"], **{right: right in row["rights"] for right in RIGHTS}, "users": row["users"]}
        for row in answer["rows"]
    ]


SCREEN = Screen(name="roles", path="/roles", answer=_answer, details=_details, rows=_rows, rights=("view_user_list",))
