"""The use cases, one plain function each, and the thin Celery tasks around them."""
