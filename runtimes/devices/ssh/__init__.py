"""Devices over ssh."""
