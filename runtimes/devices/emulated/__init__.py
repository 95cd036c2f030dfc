"""Arm devices under qemu-user."""
