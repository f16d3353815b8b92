"""For branches that are about to be merged: goes with them."""

from worker.carrier_urls import *  # noqa: F403
from worker.carrier_urls import CarrierUrl, CarrierUrlError, parse_carrier_url, parse_carrier_urls  # noqa: F401
