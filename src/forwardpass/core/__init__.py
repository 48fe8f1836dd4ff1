"""Values and mathematics that every other layer shares: no file, clock, process or model library here."""
