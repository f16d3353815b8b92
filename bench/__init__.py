"""`python -m bench`: how fast Postage is beside others."""
