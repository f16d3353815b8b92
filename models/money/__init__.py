"""The money: the ledger, and the orders that credit it."""
