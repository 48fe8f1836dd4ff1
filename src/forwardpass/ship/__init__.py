"""Runs the checklist, resumable, and writes the bundle with its report."""

from forwardpass.core.checklist import CheckLine, Verdict, is_ready
from forwardpass.ship.pipeline import Shipment, ShipRequest, ship, source_variant

__all__ = ["CheckLine", "ShipRequest", "Shipment", "Verdict", "is_ready", "ship", "source_variant"]
