"""Everything that touches the inside of Celery and kombu, and nothing else does.

The private names that are used here are listed in tests/unit/test_private_names.py, which an upgrade fails first.
"""
