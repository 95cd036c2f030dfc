"""The jobs of the command line, as functions: from options to what is made."""
