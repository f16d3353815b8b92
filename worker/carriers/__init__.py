"""The only code that leaves the house: SMTP, the SMS gateway, and a carrier that accepts all."""
