"""What an export would make and what a device would need for it, from headers alone.

No weight is read. A target's writer lays out its files with holes where weights belong, in a folder
that is removed again, and what is planned is read from those files as from finished ones.
"""
