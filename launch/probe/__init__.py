"""Probes: what this machine does, measured, as plain values. isthmus plan calibrate makes a profile of them."""
