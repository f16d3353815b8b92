"""The vault: tables, messages, prices and the moves allowed on them.

Nothing here imports celery, kombu, redis or a carrier: what a rule needs from outside is handed to it.
"""
