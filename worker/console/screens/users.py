"""The users of the viewer's organization, and whose credits they spend."""

from worker.console.screen import Screen

SCREEN = Screen(name="users", path="/users", task="views.users", rights=("view_user_list",))
