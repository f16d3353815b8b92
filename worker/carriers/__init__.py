"""Carriers: the only code that sends anything out. SMTP, an SMS gateway over HTTP, and one that accepts everything.

A carrier is a class with the methods of `models.sends.carrier.Carrier`, and a line in `routes.CARRIERS`.
"""
