"""The console: the pages on which users see their credits, and what they may change.

It reads by the same functions as `views.*`, and changes credits and users only by enqueuing the same tasks as any
producer. A screen is a module in `screens/` and a template of the same name; all else it gets from `app.py`.
"""
