"""The vault: the wire contract, the tables, and every rule that reads or writes them.

Nothing here imports Celery, kombu, Redis or a carrier: what a rule needs from outside is passed to it. The folders are
a ladder, checked by import-linter: each imports only those after it.

    reports > sends > money > users > database | messages > errors, text
"""
