"""The order history: what was bought, by whom, and what was reversed of it."""

from worker.console.screen import Screen

SCREEN = Screen(name="orders", path="/orders", task="views.orders")
