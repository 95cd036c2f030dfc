"""An export: packages of targets, made in one pass over a source, with reference and manifest."""
